"""Checks every image and mask of a data set before anything is trained on it.

All problems are listed at once, each with its file and reason. Errors stop a run; warnings are things that
are accepted, by a stated rule, and that a user may want to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from samtune.data.facts import ImageFacts, image_facts
from samtune.data.splits import LABEL_LISTS, PARTS
from samtune.data.verify import VerifyReport, list_problems
from samtune.errors import ConfigError, DataError
from samtune.tasks.masks.pairs import MaskFacts, Pair, mask_facts, scan_folder

MIN_SIDE = 8  # pixels; nothing smaller can be segmented at a quarter of its size

FactsT = TypeVar("FactsT", ImageFacts, MaskFacts)


def recognises(folder: str | Path) -> bool:
    """Returns whether a folder looks like one of pairs, by names alone: images/ or masks/, and no list of classes."""
    folder = Path(folder)
    places = [folder, *(folder / part for part in PARTS)]
    pairs = any((place / name).is_dir() for place in places for name in ("images", "masks"))
    return pairs and not any((folder / name).is_file() for name in LABEL_LISTS)


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a data folder and every pair in it.

    Args:
        folder: holds `images/` and `masks/`, or `train/`, `val/`, `test/` with these.
        name: of a known data set; there is none of pairs.

    Returns:
        All errors and warnings.

    Raises:
        ConfigError: a name.
    """
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and masks has a name; leave it out")
    folder = Path(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()] or [folder]
    scans = [scan_folder(part) for part in parts]
    problems = [line for _, lines in scans for line in lines]
    report = verify_pairs(pair for pairs, _ in scans for pair in pairs)
    return VerifyReport((*problems, *report.errors), report.warnings)


def check_pairs(pairs: Iterable[Pair]) -> VerifyReport:
    """Checks what a run is about to use.

    Args:
        pairs: in any order; the report is in order of the image files, whatever the split.

    Returns:
        A report without errors.

    Raises:
        DataError: lists every bad file with its reason.
    """
    report = verify_pairs(sorted(pairs, key=lambda pair: str(pair.image)))
    if report.errors:
        raise DataError(list_problems("the data can't be used", report.errors))
    return report


def verify_pairs(pairs: Iterable[Pair]) -> VerifyReport:
    """Checks every pair; files that are new or changed are decoded, once.

    Args:
        pairs: what to check.

    Returns:
        All errors and warnings.
    """
    pairs = list(pairs)
    errors: list[str] = []
    warnings: list[str] = []
    empty: list[bool] = []
    images, masks = image_facts([pair.image for pair in pairs]), mask_facts([pair.mask for pair in pairs])
    for pair, found_image, found_mask in zip(pairs, images, masks, strict=True):
        image = _usable(pair.image, found_image, errors)
        mask = _usable(pair.mask, found_mask, errors)
        for path, facts in ((pair.image, image), (pair.mask, mask)):
            warnings += [f"{path}: {oddity}" for oddity in (facts.oddities if facts else ())]
        if mask is not None:
            empty.append(mask.components == 0)
        if image is not None and mask is not None:
            _compare(pair, image, mask, errors, warnings)
    if empty and all(empty):
        errors.append(
            f"all {len(empty)} masks are empty: nothing to learn; foreground must be 255 (or 1), background 0"
        )
    return VerifyReport(tuple(errors), tuple(warnings))


def _usable(path: Path, facts: FactsT | DataError, errors: list[str]) -> FactsT | None:
    """Returns the facts of a file that can be used; else None, with the reason in `errors`."""
    if isinstance(facts, DataError):
        errors.append(str(facts))
        return None
    if min(facts.width, facts.height) < MIN_SIDE:
        size = f"{facts.width} x {facts.height}"
        errors.append(f"{path}: {size} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")
        return None
    return facts


def _compare(pair: Pair, image: ImageFacts, mask: MaskFacts, errors: list[str], warnings: list[str]) -> None:
    if image.orientation != mask.orientation:
        errors.append(
            f"{pair.image}: EXIF orientation {image.orientation}, but {mask.orientation} in its mask; "
            "save both files upright, without the tag"
        )
    elif (image.width, image.height) != (mask.width, mask.height):
        errors.append(
            f"{pair.mask}: size mismatch, mask {mask.width} x {mask.height}, image {image.width} x {image.height}; "
            "export the mask again at the image's size"
        )
    elif image.orientation != 1:
        warnings.append(f"{pair.image}: EXIF orientation {image.orientation} on image and mask, applied to both")
