"""Pairs of image and mask on disk, two files of one stem in `images/` and `masks/`: finding and decoding them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from samtune.data.cache import recall
from samtune.data.coco import find_annotations
from samtune.data.pictures import ORIENTATION, SUFFIXES, is_picture, open_picture
from samtune.data.verify import list_problems
from samtune.errors import DataError
from samtune.tasks.masks.prompts import count_components
from samtune.types import MaskArray

NOISE = 4  # grey levels by which black may be off in a JPEG


@dataclass(frozen=True)
class Pair:
    """An image file with its mask file, by the stem that both share."""

    name: str
    image: Path
    mask: Path


class MaskFacts(NamedTuple):
    """What a file of a mask shows.

    Attributes:
        width: in pixels, EXIF orientation applied, as `height`.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        components: `count_components`; 0 for a mask without foreground.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    components: int


def find_pairs(folder: str | Path) -> list[Pair]:
    """Lists the pairs of a folder, at least one, by name; a `DataError` has all that `scan_folder` complains about."""
    pairs, problems = scan_folder(folder)
    if problems:
        raise DataError(list_problems(f"{folder} is not a usable data folder", problems))
    return pairs


def scan_folder(folder: str | Path) -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a data folder, sorted by name, and a line per problem; no file is opened."""
    folder = Path(folder)
    if missing := [sub for sub in ("images", "masks") if not (folder / sub).is_dir()]:
        return [], [_missing(folder, missing)]
    images, problems = _by_stem(folder / "images")
    masks, mask_problems = _by_stem(folder / "masks")
    unusable = problems | mask_problems
    lines = [*unusable.values(), *_unpaired(images, masks)]
    if not images and not masks and not lines:
        lines = [f"{folder}: images/ and masks/ hold no image file (allowed: {' '.join(SUFFIXES)})"]
    both = (Pair(stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))
    return [pair for pair in both if pair.image not in unusable and pair.mask not in unusable], lines


def read_mask(path: str | Path) -> MaskArray:
    """Decodes a binary mask by the rules of `to_mask`.

    Raises:
        DataError: the file can't be read, or isn't a binary mask.
    """
    with open_picture(path) as picture:
        return to_mask(picture)


def mask_facts(paths: Sequence[Path]) -> list[MaskFacts | DataError]:
    """Returns the facts of mask files, remembered per file; where one can't be read, the error that says why."""
    answers = recall("masks-2", paths, _look)
    return [answer if isinstance(answer, DataError) else MaskFacts(*answer) for answer in answers]


def to_mask(picture: Image.Image) -> MaskArray:
    """Converts a decoded picture to a binary mask: (H, W) bool, True = foreground, EXIF orientation applied.

    Rules: 0 and one other value: the other is foreground. Only a JPEG may have more: > 127, at most 1 % of the pixels
    between 16 and 239. Palette: by colour where the palette is grey, else by index. RGB and RGBA: the channels must be
    equal.

    Raises:
        DataError: labels of instances or classes, soft edges, or coloured channels.
    """
    lossy = picture.format in ("JPEG", "MPO")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "1":
        return np.array(picture, dtype=bool)
    grey = np.asarray(picture.convert("L")) if lossy else _grey_levels(picture)
    levels = np.unique(grey) if grey.dtype != np.uint8 else np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    between = float(np.mean((grey >= 16) & (grey <= 239)))
    if lossy and between <= 0.01 and not NOISE < levels[-1] <= 127:
        return cast(MaskArray, grey > 127)
    if not lossy and (len(levels) == 1 or (len(levels) == 2 and levels[0] == 0)):
        return cast(MaskArray, grey > 0)
    soft = levels[-1] > 127 if lossy else 240 <= levels[-1] <= 255 and len(levels) > 8
    raise DataError(_not_binary(levels, between, soft=bool(soft)))


def _not_binary(levels: np.ndarray, between: float, *, soft: bool) -> str:
    """Says what a mask of these levels, with this share of pixels between 16 and 239, looks like, and what it needs."""
    low, high = int(levels[0]), int(levels[-1])
    if soft:
        found = f"not a binary mask: {len(levels)} values, {between:.1%} of its pixels are between 16 and 239"
        return f"{found} (at most 1 % in a JPEG, only two values in others); save (mask > 127) * 255 as PNG"
    if len(levels) == 2:
        return f"mask with 2 classes, {low} and {high}, of which none is 0; a binary mask has 0 for background, and 255"
    labels = f"mask with {len(levels)} classes, looks like instance or class labels: values {low} to {high}"
    return f"{labels}; a binary mask has 0 and one other value: save (labels > 0) * 255, or one of the labels, as PNG"


def _grey_levels(picture: Image.Image) -> np.ndarray:
    """Returns (H, W) integer levels of a lossless mask."""
    if picture.mode in ("L", "LA") or picture.mode.startswith("I"):
        return np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
    colours = np.asarray(picture.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return colours[..., 0]
    if picture.mode == "P":
        return np.asarray(picture)
    raise DataError("coloured mask: its channels differ, as of labels; save it as one grey channel with 0 and 255")


def _look(path: Path) -> MaskFacts:
    with open_picture(path) as picture:
        mask = to_mask(picture)
        orientation = int(picture.getexif().get(ORIENTATION, 1))
        oddities = _oddities(picture, mask)
    return MaskFacts(mask.shape[1], mask.shape[0], orientation, oddities, count_components(mask))


def _oddities(picture: Image.Image, mask: MaskArray) -> list[str]:
    found = []
    if picture.format in ("JPEG", "MPO"):
        found.append("JPEG mask, foreground is > 127; PNG is exact")
    elif picture.mode in ("P", "RGB", "RGBA"):
        palette = picture.mode == "P"
        kind = "palette mask, read by grey colour or index" if palette else f"{picture.mode} mask of equal channels"
        found.append(f"{kind}; one grey channel is clearer")
    if mask.all() or not mask.any():
        found.append(f"mask is all {'foreground' if mask.all() else 'background'}")
    elif mask.mean() > 0.5 and np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean() > 0.9:
        found.append("mask looks inverted: foreground covers more than half the image and nearly all its border")
    return found


def _by_stem(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """Returns stem -> the first file that has it, and a line for each file that can't be used.

    Such a file still is its partner's partner: one line per fault.
    """
    found: dict[str, Path] = {}
    problems: dict[Path, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return {}, {
            folder: f"{folder}: can't be listed ({str(error.strerror).lower()}); change its rights (chmod u+rx)"
        }
    for name in names:
        path = folder / name
        if not is_picture(path):
            continue
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # surrogates: bytes of the file system as they were
            problems[path] = f"{str(path)!a}: name is not UTF-8; rename it"
            continue
        if problem := _name_problem(path, found):
            problems[path] = problem
        found.setdefault(path.stem, path)
    return found, problems


def _name_problem(path: Path, found: Mapping[str, Path]) -> str | None:
    if path.stem in found:
        return f"{path}: duplicate stem {path.stem!r}, {found[path.stem].name} has it too; keep one of them"
    if path.is_symlink() and not path.exists():
        return f"{path}: dangling link to {os.readlink(path)}; put the file there, or delete the link"
    return None if path.is_file() else f"{path}: a folder or special file, not a picture; move it away"


def _unpaired(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    """Returns a line for each image without mask and mask without image; one for all that differ by a fixed text."""
    unmasked, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    lines = []
    if renamed := _renamed(unmasked, orphans):
        image, mask = images[next(iter(renamed))], masks[next(iter(renamed.values()))]
        named = f"{len(renamed)} masks are not named as their images, such as {mask.name} for {image.name}"
        lines.append(f"{mask.parent}: {named}; give each the stem of its image ({image.stem}{mask.suffix})")
    for path in (images[stem] for stem in unmasked if stem not in renamed):
        lines.append(f"{path}: no mask named {path.stem}.* in masks/; add it, or take the image out")
    for path in (masks[stem] for stem in orphans if stem not in renamed.values()):
        lines.append(f"{path}: orphan mask, no image named {path.stem}.* in images/; add it, or take the mask out")
    return lines


def _renamed(unmasked: Sequence[str], orphans: Sequence[str]) -> dict[str, str]:
    """Maps stems of images to those of masks, where both lists are the same but for what all names of a list share."""
    images, masks = _cores(unmasked), _cores(orphans)
    same = {images[core]: masks[core] for core in images if core in masks}
    return same if len(same) > 1 and 2 * len(same) >= len(unmasked) else {}


def _cores(names: Sequence[str]) -> dict[str, str]:
    """Returns each name by what is left of it without the beginning and the end that all share."""
    start = _shared(names)
    end = _shared([name[start:][::-1] for name in names])
    return {name[start : len(name) - end]: name for name in names}


def _shared(names: Sequence[str]) -> int:
    """Returns the number of letters with which all names begin."""
    low, high = min(names, default=""), max(names, default="")
    pairs = enumerate(zip(low, high, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(low))


def _missing(folder: Path, missing: Iterable[str]) -> str:
    """Says which of images/ and masks/ a folder lacks, and what it seems to hold instead."""
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    nothing = "nothing" if folder.is_dir() else "no such folder"
    found = ", ".join(ascii(path.name)[1:-1] for path in present[:10]) or nothing
    wanted = " and ".join(f"{sub}/" for sub in missing)
    text = f"{folder}: {wanted} missing (found: {found}); see data/README.md for the layout"
    if find_annotations(folder):
        return f"{text}; polygons of COCO become masks by: samtune data import coco {folder} --out DIR"
    if "images" in missing and any(path.is_dir() and any(map(is_picture, path.iterdir())) for path in present):
        return f"{text}; folders of classes are for task: classification (--config folders.yaml)"
    return text
