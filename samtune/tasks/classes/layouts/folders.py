"""Folders whose sub-folders are classes."""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from samtune.data.pictures import SUFFIXES
from samtune.data.splits import PARTS

Named = tuple[Path, str]
"""An image file and the name of its class."""
NamedParts = dict[str, list[Named]]
"""Part ("train", "val", "test") to its images; a part that the folder doesn't have is absent."""

VAL_IS_TEST = "no test/ here: val/ is what is reported, and opened once"
FOREIGN = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".ppm", ".pgm")  # pictures that are not read
BESIDE, BELOW = "beside the class folders", "in sub-folders of a class"
OTHER_FORMAT = f"of a format that is not read ({' '.join(FOREIGN)})"


def read_class_folders(root: Path, wanted: Collection[str], problems: list[str], notes: list[str]) -> NamedParts:
    """Lists DIR/PART/CLASS/picture of the wanted parts, or DIR/CLASS/picture as the part "all".

    `val/` without `test/` is what is reported, as for ImageNet-1k: it becomes the test part. `problems` and `notes`
    get lines, as from `scan_classes`.
    """
    where = {part: part for part in PARTS if (root / part).is_dir()}
    if not where:
        return {"all": scan_classes(root, problems, notes)} if "all" in wanted else {}
    if "val" in where and "test" not in where and "test" in wanted:
        where["test"] = where.pop("val")
        notes.append(VAL_IS_TEST)
    return {part: scan_classes(root / place, problems, notes) for part, place in where.items() if part in wanted}


def read_corruptions(root: Path, problems: list[str], notes: list[str]) -> NamedParts:
    """Lists DIR/CORRUPTION/SEVERITY/CLASS/picture of ImageNet-C: "CORRUPTION/SEVERITY" to its images.

    `problems` gets a line for each folder that doesn't fit.
    """
    parts: NamedParts = {}
    for corruption in _folders(root):
        for severity in _folders(corruption):
            if severity.name.isdecimal():
                parts[f"{corruption.name}/{severity.name}"] = scan_classes(severity, problems, notes)
            else:
                problems.append(f"{severity}: not a severity; the layout is CORRUPTION/1 to 5/CLASS/picture")
    if not parts:
        problems.append(f"{root}: no CORRUPTION/SEVERITY/CLASS/picture in it (found: {found_names(root)})")
    return parts


def scan_classes(folder: Path, problems: list[str], notes: list[str]) -> list[Named]:
    """Lists DIR/CLASS/picture, sorted: extensions in any case, without hidden files.

    Args:
        problems: gets a line for each empty class folder, each name that can't be used, where no class is, and where
            the folders are those of images and masks.
        notes: gets one line where pictures are left out: beside or below the class folders, or of other formats.
    """
    classes = _folders(folder)
    if {"images", "masks"} <= {place.name for place in classes}:
        pairs = "images/ and masks/ are pairs for task: segmentation (--config polyp.yaml)"
        problems.append(f"{folder}: {pairs}; if they are two classes, give the folders other names")
        return []
    if not classes:
        place = f"{folder.name}/CLASS/"
        problems.append(f"{folder}: no class folder; pictures belong into {place} (found: {found_names(folder)})")
    left = Counter({BESIDE: sum(_is_picture(name, (*SUFFIXES, *FOREIGN)) for name in os.listdir(folder))})
    images = [(path, place.name) for place in classes for path in _pictures(place, problems, left)]
    if +left:
        notes.append(f"{folder}: pictures left out: {', '.join(f'{count} {what}' for what, count in (+left).items())}")
    return images


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct names of classes in order: as numbers if all are, else as text."""
    ordered = tuple(sorted(set(names)))
    return tuple(sorted(ordered, key=int)) if all(name.isdecimal() for name in ordered) else ordered


def found_names(folder: Path) -> str:
    """Returns the first names in a folder, for a message."""
    return ", ".join(ascii(name)[1:-1] for name in sorted(os.listdir(folder))[:10]) or "nothing"


def _pictures(place: Path, problems: list[str], left: Counter[str]) -> list[Path]:
    if not _is_utf8(place.name):
        problems.append(f"{str(place)!a}: name is not UTF-8; rename it")
        return []
    present = sorted(os.listdir(place))
    names = [name for name in present if _is_picture(name, SUFFIXES)]
    left[OTHER_FORMAT] += sum(_is_picture(name, FOREIGN) for name in present)
    for below in _folders(place):
        left[BELOW] += sum(_is_picture(name, SUFFIXES) for _, _, files in os.walk(below) for name in files)
    if not names:
        problems.append(f"{place}: empty class folder, no picture in it (allowed: {' '.join(SUFFIXES)})")
    problems += [f"{str(place / name)!a}: name is not UTF-8; rename it" for name in names if not _is_utf8(name)]
    return [place / name for name in names if _is_utf8(name)]


def _folders(folder: Path) -> list[Path]:
    """Returns the sub-folders, sorted by name, without hidden ones and the leftovers of an archiver."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [folder / name for name in names if not name.startswith((".", "__MACOSX"))]


def _is_picture(name: str, suffixes: Collection[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # the file system's bytes came through as surrogates
        return False
    return True
