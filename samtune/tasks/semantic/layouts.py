"""How do folders of binary masks per class, and annotations, become maps? Drawn once, and kept in the cache."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samtune.data.channels.read import read_stored
from samtune.data.formats.drawing import GROUND, Drawing, drawn_file
from samtune.data.formats.index import labels_file, read_labels
from samtune.data.formats.table import categories_of
from samtune.data.pairs import Pair, by_stem, scan_folder
from samtune.data.splits import PARTS
from samtune.errors import DataError
from samtune.tasks.binary import read_mask

logger = logging.getLogger(__name__)


def labels_of(folder: Path, form: str) -> dict[int, str]:
    """Returns the classes that a data folder names itself, by the values that they get; {} where maps say values only.

    Those of a list beside index pictures have its numbers. Else 0 is the background, and the others follow in the order
    of their folders' names, or of the categories of the annotations.

    Args:
        form: "pairs", or the name of a format.

    Raises:
        DataError: annotations that can't be read, or a list of classes that is none.
    """
    if form == "index":
        return _listed(folder)
    found: dict[str, None] = {}
    for place in _places(folder) if form == "pairs" else ():
        found |= dict.fromkeys(path.name for path in class_folders(place))
    names = categories_of(form, folder) if form != "pairs" else list(found)
    ordered = [GROUND, *(name for name in names if name != GROUND)]
    return dict(enumerate(ordered)) if names else {}


def has_class_folders(folder: Path) -> bool:
    """Tells whether a data folder, or a part of it, has masks in a folder per class."""
    return any(class_folders(place) for place in _places(folder))


def scan_class_folders(drawing: Drawing, folder: Path) -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a folder with masks/CLASS/, and a line per problem; the maps are drawn first."""
    return _scan_folders(folder, drawing) if class_folders(folder) else scan_folder(folder)


def class_folders(folder: Path) -> list[Path]:
    """Returns the folders of masks/, each of a class."""
    masks = folder / "masks"
    return [path for path in sorted(masks.iterdir()) if path.is_dir() and path.name[0] != "."] if masks.is_dir() else []


def _places(folder: Path) -> list[Path]:
    return [folder, *(folder / part for part in PARTS)]


def _listed(folder: Path) -> dict[int, str]:
    """Returns the classes of the lists beside index pictures, which agree where parts have one each."""
    files = dict.fromkeys(file for place in _places(folder) if (file := labels_file(place)) is not None)
    found = {file: read_labels(file) for file in files}
    for file, names in found.items():
        if names != next(iter(found.values())):
            raise DataError(f"{file}: other classes than {next(iter(found))}; keep one list, beside train/")
    return {0: GROUND, **next(iter(found.values()))} if found else {}


def _scan_folders(folder: Path, drawing: Drawing) -> tuple[list[Pair], list[str]]:
    """Reads images/ and masks/CLASS/: an image without a file in a class does not show it."""
    images, wrong = by_stem(folder / "images") if (folder / "images").is_dir() else ({}, {})
    problems = [*wrong.values()] if images or wrong else [f"{folder}: images/ with pictures is missing"]
    masks: dict[str, dict[str, Path]] = {}
    for place in class_folders(folder):
        try:
            if drawing.value(place.name) is None:
                continue
        except DataError as error:
            problems.append(f"{place}: {error}")
        found, wrong = by_stem(place)
        problems += wrong.values()
        for stem, path in found.items():
            masks.setdefault(stem, {})[place.name] = path
    for stem in sorted(images.keys() ^ masks.keys()):
        path = images.get(stem) or next(iter(masks[stem].values()))
        missing = f"no mask named {stem}.* in any masks/CLASS/" if stem in images else f"no image named {stem}.*"
        problems.append(f"{path}: {missing}; add it, or take this out")
    pairs = []
    for stem in () if problems else sorted(images):
        try:
            pairs.append(Pair(stem, images[stem], _drawn_masks(images[stem], masks[stem], drawing)))
        except DataError as error:
            problems.append(str(error))
    return pairs, problems


def _drawn_masks(image: Path, masks: Mapping[str, Path], drawing: Drawing) -> Path:
    how = f"{sorted(masks)} {drawing}"
    return drawn_file(image, [image, *masks.values()], how, lambda: _united(image, masks, drawing))


def _united(image: Path, masks: Mapping[str, Path], drawing: Drawing) -> np.ndarray:
    """Draws the masks of an image's classes, later classes over earlier ones: (H, W) uint8."""
    size = read_stored(image).values.shape[:2]
    values, overlap = np.full(size, drawing.ground, dtype=np.uint8), 0
    taken = np.zeros(size, dtype=bool)
    for name in (name for name in drawing.values if name in masks):
        mask = read_mask(masks[name])
        if mask.shape != size:
            found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, size))
            raise DataError(
                f"{masks[name]}: size mismatch, mask {found}, image {wanted}; export it at the image's size"
            )
        overlap += int((mask & taken).sum())
        taken |= mask
        values[mask] = drawing.values[name]
    if overlap:
        logger.warning("%s: %d pixels are in masks of two classes; the later class counts", image, overlap)
    return values
