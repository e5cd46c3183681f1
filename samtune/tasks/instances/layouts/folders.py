"""How do folders with one mask per object become maps? Drawn once, and kept in the cache.

`images/NAME.*` with `instances/NAME/*.png`, or `NAME/images/NAME.*` with `NAME/masks/*.png`, as in the Data Science
Bowl of 2018. The names of the masks mean nothing; a picture whose folder is empty has no object.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from samtune.data.channels.tiff import picture_size
from samtune.data.formats.drawing import drawn_file
from samtune.data.pairs import Pair, by_stem, scan_folder
from samtune.data.pictures import is_picture
from samtune.data.splits import PARTS
from samtune.errors import DataError
from samtune.tasks.binary import read_mask
from samtune.tasks.instances.objects import paint_smaller_over
from samtune.types import MaskArray

FOLDER = "instances"
"""What the folder of maps, or of folders of masks, beside images/ is called."""
OTHERS = (*PARTS, "splits")
Found = dict[str, tuple[Path, list[Path]]]
"""Stem -> picture, and the masks of its objects."""


def has_objects(place: Path) -> bool:
    """Tells by names alone whether a folder has instances/, or pictures in the layout of the bowl."""
    return (place / FOLDER).is_dir() or any(_bowls(place))


def scan_objects(place: Path) -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a folder, and a line per problem; of masks of single objects, maps are drawn."""
    if _folders(place / FOLDER):
        found, problems = _by_folder(place)
    elif any(_bowls(place)) and not (place / FOLDER).is_dir():
        found, problems = _by_bowl(place)
    else:
        return scan_folder(place, masks_in=FOLDER)
    pairs = []
    for stem, (image, masks) in sorted(found.items()):
        how = f"objects of {[mask.name for mask in masks]}"
        try:
            pairs.append(Pair(stem, image, drawn_file(image, [image, *masks], how, partial(_drawn, image, masks))))
        except DataError as error:
            problems += str(error).splitlines()
    return pairs, problems


def _folders(place: Path) -> list[Path]:
    return [p for p in sorted(place.iterdir()) if p.is_dir() and p.name[0] != "."] if place.is_dir() else []


def _bowls(place: Path) -> Iterator[Path]:
    """Yields the folders NAME with masks/ and images/NAME.*; train/, val/, test/ and splits/ are something else."""
    for folder in _folders(place):
        both = folder.name not in OTHERS and all((folder / name).is_dir() for name in ("images", "masks"))
        if both and any(path.stem == folder.name and is_picture(path) for path in (folder / "images").iterdir()):
            yield folder


def _by_folder(place: Path) -> tuple[Found, list[str]]:
    images, wrong = by_stem(place / "images") if (place / "images").is_dir() else ({}, {})
    problems = list(wrong.values()) if images or wrong else [f"{place}: images/ with pictures is missing"]
    folders = {folder.name: folder for folder in _folders(place / FOLDER)}
    for path in sorted((place / FOLDER).iterdir()):
        if path.is_file() and is_picture(path):
            problems.append(f"{path}: a map beside folders with a mask per object; keep one of the two layouts")
    for stem in sorted(images.keys() - folders.keys()):
        line = f"no folder {FOLDER}/{stem}/ with a mask per object; add it, empty if it shows none"
        problems.append(f"{images[stem]}: {line}")
    for stem in sorted(folders.keys() - images.keys()):
        problems.append(f"{folders[stem]}: masks of no image named {stem}.* in images/; add it, or take them out")
    both = images.keys() & folders.keys()
    return {stem: (images[stem], _masks(folders[stem], problems)) for stem in both}, problems


def _by_bowl(place: Path) -> tuple[Found, list[str]]:
    found, problems, bowls = Found(), list[str](), {path.name: path for path in _bowls(place)}
    for folder in (one for one in _folders(place) if one.name not in OTHERS):
        if folder.name not in bowls:
            lacking = f"no images/{folder.name}.* with masks/ beside it, as other folders have"
            problems.append(f"{folder}: {lacking}; add them, or take it out")
            continue
        images, wrong = by_stem(folder / "images")
        problems += wrong.values()
        found[folder.name] = (images[folder.name], _masks(folder / "masks", problems))
    return found, problems


def _masks(folder: Path, problems: list[str]) -> list[Path]:
    masks, wrong = by_stem(folder)
    problems += wrong.values()
    return [path for path in masks.values() if path not in wrong]


def _drawn(image: Path, files: Sequence[Path]) -> np.ndarray:
    """Draws the map of an image: (H, W) uint16; a `DataError` has a line for each mask that can't be drawn."""
    width, height = picture_size(image)
    size = (height, width)
    lines, masks, areas = list[str](), list[Callable[[], MaskArray]](), list[int]()
    for file in files:
        try:
            mask = read_mask(file)
        except DataError as error:
            lines.append(str(error))
            continue
        if mask.shape != size:
            found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, size))
            lines.append(f"{file}: size mismatch, mask {found}, image {wanted}; export it at the image's size")
        masks.append(partial(read_mask, file))
        areas.append(int(mask.sum()))
    if lines:
        raise DataError("\n".join(lines))
    return paint_smaller_over(masks, areas, size, names=[str(file) for file in files], of=image)
