"""Checks every image and mask of a data set before anything is trained on it.

All problems are listed at once, each with its file and reason. Errors stop a run; warnings are things that
are accepted, by a stated rule, and that a user may want to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtune.data.cache import remember
from samtune.data.pictures import ORIENTATION, PARTS, list_problems, open_picture, to_rgb
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError, DataError
from samtune.tasks.masks.pairs import Pair, scan_folder, to_mask
from samtune.types import ImageArray, MaskArray

MIN_SIDE = 8  # pixels; nothing smaller can be segmented at a quarter of its size


@dataclass(frozen=True)
class _Seen:
    """What one decoded file showed: width and height, EXIF orientation tag, what is odd, whether all is 0."""

    size: tuple[int, int]
    orientation: int
    oddities: list[str]
    empty: bool


def recognises(folder: Path) -> bool:
    """Tells by names whether a folder holds masks, or parts with masks."""
    return any((place / "masks").is_dir() for place in (folder, *(folder / part for part in PARTS)))


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a data folder and every pair in it.

    Args:
        folder: holds `images/` and `masks/`, or `train/`, `val/`, `test/` with these.
        name: of a known data set; there are none of pairs.

    Raises:
        ConfigError: a name.

    Returns:
        All errors and warnings.
    """
    if name is not None:
        raise ConfigError(f"data set {name!r} is none of pairs of image and mask; leave --name out.")
    folder = Path(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()] or [folder]
    scans = [scan_folder(part) for part in parts]
    problems = [line for _, lines in scans for line in lines]
    report = verify_pairs(pair for pairs, _ in scans for pair in pairs)
    return VerifyReport((*problems, *report.errors), report.warnings)


def check_pairs(pairs: Sequence[Pair]) -> VerifyReport:
    """Checks pairs, once: the result is remembered as long as no file changes.

    Args:
        pairs: what a run is about to use.

    Returns:
        A report without errors.

    Raises:
        DataError: lists every bad file with its reason.
    """

    pairs = sorted(pairs, key=lambda pair: str(pair.image))  # one answer, whatever the split

    def lines() -> list[tuple[str, ...]]:
        report = verify_pairs(pairs)
        return [report.errors, report.warnings]

    errors, warnings = remember("verify-1", [path for pair in pairs for path in (pair.image, pair.mask)], lines)
    if errors:
        raise DataError(list_problems("the data can't be used", errors))
    return VerifyReport((), tuple(warnings))


def verify_pairs(pairs: Iterable[Pair]) -> VerifyReport:
    """Decodes and checks every pair.

    Args:
        pairs: what to check.

    Returns:
        All errors and warnings.
    """
    errors: list[str] = []
    warnings: list[str] = []
    empty: list[bool] = []
    for pair in pairs:
        image = _look(pair.image, to_rgb, _image_oddities, errors)
        mask = _look(pair.mask, to_mask, _mask_oddities, errors)
        for path, seen in ((pair.image, image), (pair.mask, mask)):
            warnings += [f"{path}: {oddity}" for oddity in (seen.oddities if seen else ())]
        if mask is not None:
            empty.append(mask.empty)
        if image is not None and mask is not None:
            _compare(pair, image, mask, errors, warnings)
    if empty and all(empty):
        errors.append(
            f"all {len(empty)} masks are empty: nothing to learn; foreground must be 255 (or 1), background 0"
        )
    return VerifyReport(tuple(errors), tuple(warnings))


def _look(
    path: Path,
    decode: Callable[[Image.Image], Any],
    oddities: Callable[[Image.Image, Any], list[str]],
    errors: list[str],
) -> _Seen | None:
    """Decodes one file; a failure goes to `errors` and gives None."""
    try:
        with open_picture(path) as picture:
            pixels = decode(picture)
            height, width = pixels.shape[:2]
            if min(height, width) < MIN_SIDE:
                raise DataError(f"{width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")
            odd = oddities(picture, pixels)
            orientation = int(picture.getexif().get(ORIENTATION, 1))
    except DataError as error:
        errors.append(str(error))
        return None
    return _Seen((width, height), orientation, odd, not pixels.any())


def _image_oddities(picture: Image.Image, pixels: ImageArray) -> list[str]:
    found = []
    if picture.mode.startswith("I"):
        found.append("16-bit image, scaled to 8 bits by value / 257")
    if (pixels == pixels[0, 0]).all():
        found.append("constant image, every pixel has the same colour")
    return found


def _mask_oddities(picture: Image.Image, mask: MaskArray) -> list[str]:
    found = []
    if picture.format in ("JPEG", "MPO"):
        found.append("JPEG mask, foreground is > 127; PNG is exact")
    elif picture.mode in ("P", "RGB", "RGBA"):
        kind = {"P": "palette mask, read by grey colour or index"}.get(
            picture.mode, f"{picture.mode} mask of equal channels"
        )
        found.append(f"{kind}; one grey channel is clearer")
    if mask.all() or not mask.any():
        found.append(f"mask is all {'foreground' if mask.all() else 'background'}")
    elif mask.mean() > 0.5 and np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean() > 0.9:
        found.append("mask looks inverted: foreground covers more than half the image and nearly all its border")
    return found


def _compare(pair: Pair, image: _Seen, mask: _Seen, errors: list[str], warnings: list[str]) -> None:
    if image.orientation != mask.orientation:
        errors.append(
            f"{pair.image}: EXIF orientation {image.orientation}, but {mask.orientation} in its mask; "
            "save both files upright, without the tag"
        )
    elif image.size != mask.size:
        (width, height), (mask_width, mask_height) = image.size, mask.size
        errors.append(
            f"{pair.mask}: size mismatch, mask {mask_width} x {mask_height}, image {width} x {height}; "
            "export the mask again at the image's size"
        )
    elif image.orientation != 1:
        warnings.append(f"{pair.image}: EXIF orientation {image.orientation} on image and mask, applied to both")
