"""Pairs of image and mask on disk, two files of one stem in `images/` and `masks/`: finding and decoding them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from samtune.data.cache import recall
from samtune.data.pictures import ORIENTATION, SUFFIXES, open_picture
from samtune.data.verify import list_problems
from samtune.errors import DataError
from samtune.tasks.masks.prompts import components
from samtune.types import MaskArray


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
        components: number of `components`; 0 for a mask without foreground.
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
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
        wanted = " and ".join(f"{sub}/" for sub in missing)
        return [], [f"{folder}: {wanted} missing (found: {found or 'nothing'}); see data/README.md for the layout"]
    images, problems = _by_stem(folder / "images")
    masks, mask_problems = _by_stem(folder / "masks")
    problems += mask_problems
    if not images and not masks and not problems:
        problems.append(f"{folder}: images/ and masks/ hold no image file (allowed: {' '.join(SUFFIXES)})")
    unmasked, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    problems += [f"{folder / 'images' / stem}.*: no mask named {stem}.* in masks/" for stem in unmasked]
    problems += [f"{folder / 'masks' / stem}.*: orphan mask, no image named {stem}.* in images/" for stem in orphans]
    both = ((stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))
    return [Pair(stem, image, mask) for stem, image, mask in both if image and mask], problems


def read_mask(path: str | Path) -> MaskArray:
    """Decodes a binary mask by the rules of `to_mask`.

    Raises:
        DataError: the file can't be read, or isn't a binary mask.
    """
    with open_picture(path) as picture:
        return to_mask(picture)


def mask_facts(paths: Sequence[Path]) -> list[MaskFacts | DataError]:
    """Returns the facts of mask files, remembered per file; where one can't be read, the error that says why."""
    answers = recall("masks-1", paths, _look)
    return [answer if isinstance(answer, DataError) else MaskFacts(*answer) for answer in answers]


def to_mask(picture: Image.Image) -> MaskArray:
    """Converts a decoded picture to a binary mask: (H, W) bool, True = foreground, EXIF orientation applied.

    Rules: 0 and one other value: the other is foreground. JPEG, and files with more than eight grey levels: > 127, at
    most 1 % of the pixels between 16 and 239. Palette: by colour where the palette is grey, else by index. RGB and
    RGBA: the channels must be equal.

    Raises:
        DataError: more than two classes, or coloured channels.
    """
    lossy = picture.format in ("JPEG", "MPO")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "1":
        return np.array(picture, dtype=bool)
    grey = np.asarray(picture.convert("L")) if lossy else _grey_levels(picture)
    levels = np.unique(grey) if grey.dtype != np.uint8 else np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    if not lossy and len(levels) <= 2 and (len(levels) == 1 or levels[0] == 0):
        return cast(MaskArray, grey > 0)
    if (not lossy and len(levels) <= 8) or levels[-1] > 255:
        shown = ", ".join(str(v) for v in levels[:8])
        raise DataError(f"mask with {len(levels)} classes (values {shown}); a binary mask has 0 and one other value")
    if (between := float(np.mean((grey >= 16) & (grey <= 239)))) > 0.01:
        raise DataError(f"not a binary mask: {between:.1%} of its pixels are between 16 and 239 (at most 1 %)")
    return cast(MaskArray, grey > 127)


def _grey_levels(picture: Image.Image) -> np.ndarray:
    """Returns (H, W) integer levels of a lossless mask."""
    if picture.mode in ("L", "LA") or picture.mode.startswith("I"):
        return np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
    colours = np.asarray(picture.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return colours[..., 0]
    if picture.mode == "P":
        return np.asarray(picture)
    raise DataError("coloured mask: its channels differ; save it as one grey channel with 0 and 255")


def _look(path: Path) -> MaskFacts:
    with open_picture(path) as picture:
        mask = to_mask(picture)
        orientation = int(picture.getexif().get(ORIENTATION, 1))
        oddities = _oddities(picture, mask)
    return MaskFacts(mask.shape[1], mask.shape[0], orientation, oddities, len(components(mask)))


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


def _by_stem(folder: Path) -> tuple[dict[str, Path | None], list[str]]:
    """Returns stem -> file, None for an unusable one, and one line for each of those."""
    found: dict[str, Path | None] = {}
    problems: list[str] = []
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if problem := _name_problem(path, found):
            problems.append(problem)
        # An unusable file still counts as its partner's partner: one line per fault.
        found.setdefault(path.stem, None if problem else path)
    return found, problems


def _name_problem(path: Path, found: Mapping[str, Path | None]) -> str | None:
    if any("\ud800" <= letter <= "\udfff" for letter in path.name):  # surrogates: bytes of the file system as they were
        return f"{str(path)!a}: name is not UTF-8; rename it"
    if path.stem in found:
        return f"{path}: duplicate stem {path.stem!r}, another file of this folder has it too; keep one"
    if path.suffix != path.suffix.lower():
        return f"{path}: extension {path.suffix!r} in upper case; rename it to {path.suffix.lower()!r}"
    if path.is_symlink() and not path.exists():
        return f"{path}: dangling link to {os.readlink(path)}"
    return None if path.is_file() else f"{path}: a folder or special file, not a picture"
