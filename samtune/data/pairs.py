"""Which image belongs to which mask: two files of one stem in `images/` and `masks/`."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from samtune.data.formats.coco import find_annotations
from samtune.data.pictures import SUFFIXES, is_picture
from samtune.data.verify import list_problems
from samtune.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """An image file with its mask file, by the stem that both share."""

    name: str
    image: Path
    mask: Path


Scan = Callable[[Path], tuple[list[Pair], list[str]]]
"""Returns the complete pairs of a folder, and a line per problem."""


def find_pairs(folder: str | Path, scan: Scan | None = None) -> list[Pair]:
    """Lists the pairs of a folder, at least one, by name; a `DataError` has all that `scan_folder` complains about.

    Args:
        scan: finds them in place of `scan_folder`.
    """
    pairs, problems = (scan or scan_folder)(Path(folder))
    if problems:
        raise DataError(list_problems(f"{folder} is not a usable data folder", problems))
    return pairs


def scan_folder(folder: str | Path, masks_in: str = "masks") -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a data folder, sorted by name, and a line per problem; no file is opened.

    Args:
        masks_in: name of the folder beside images/ that holds the masks.
    """
    folder = Path(folder)
    if missing := [sub for sub in ("images", masks_in) if not (folder / sub).is_dir()]:
        return [], [_missing(folder, missing)]
    images, problems = by_stem(folder / "images")
    masks, mask_problems = by_stem(folder / masks_in)
    unusable = problems | mask_problems
    masks = _by_image(folder / masks_in, images, masks)
    lines = [*unusable.values(), *_unpaired(images, masks, masks_in)]
    if not images and not masks and not lines:
        lines = [f"{folder}: images/ and {masks_in}/ hold no image file (allowed: {' '.join(SUFFIXES)})"]
    both = (Pair(stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))
    return [pair for pair in both if pair.image not in unusable and pair.mask not in unusable], lines


def _by_image(place: Path, images: Mapping[str, Path], masks: dict[str, Path]) -> dict[str, Path]:
    """Returns masks by the stems of their images, where all are named as these with one text before or after it.

    The rule is taken where no mask has the stem of an image, two or more fit, and they are half of both at least; it is
    said. Otherwise the stems are the masks' own.
    """
    if not images or not masks or images.keys() & masks.keys():
        return masks
    some = sorted(masks)[:3]
    rules = {mask.partition(stem)[::2] for mask in some for stem in images if stem and stem in mask}
    fitting = {rule: _without(rule, masks) for rule in rules}
    counts = {rule: len(stems.keys() & images.keys()) for rule, stems in fitting.items() if len(stems) == len(masks)}
    best = max(counts, key=lambda rule: counts[rule], default=("", ""))
    most = counts.get(best, 0)
    if most < 2 or 2 * most < max(len(images), len(masks)) or list(counts.values()).count(most) > 1:
        return masks
    _say(place, "{}".join(best), most)
    return fitting[best]


def _without(rule: tuple[str, str], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the masks that begin and end as a rule says, by what is left of their stems."""
    start, end = rule
    inner = {stem: stem[len(start) : len(stem) - len(end)] for stem in masks}
    return {inner[stem]: path for stem, path in masks.items() if stem == f"{start}{inner[stem]}{end}"}


@cache
def _say(masks: Path, rule: str, count: int) -> None:
    """Says once that masks were paired by a rule."""
    _log.info("%s: %d masks are paired with images by one rule: STEM.* with %s.*", masks, count, rule.format("STEM"))


def by_stem(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
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


def _unpaired(images: Mapping[str, Path], masks: Mapping[str, Path], masks_in: str) -> list[str]:
    """Returns a line for each image without mask and mask without image; one for all that differ by a fixed text."""
    unmasked, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    lines = []
    if renamed := _renamed(unmasked, orphans):
        image, mask = images[next(iter(renamed))], masks[next(iter(renamed.values()))]
        named = f"{len(renamed)} masks are not named as their images, such as {mask.name} for {image.name}"
        lines.append(f"{mask.parent}: {named}; give each the stem of its image ({image.stem}{mask.suffix})")
    for path in (images[stem] for stem in unmasked if stem not in renamed):
        lines.append(f"{path}: no mask named {path.stem}.* in {masks_in}/; add it, or take the image out")
    for stem in (stem for stem in orphans if stem not in renamed.values()):
        lines.append(f"{masks[stem]}: orphan mask, no image named {stem}.* in images/; add it, or take the mask out")
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
