"""Lists of images with labels: VTAB-1k's text files, FGVC's JSON files, and a user's own."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from samtune.data.splits import PARTS
from samtune.tasks.classes.layouts.folders import Named, NamedParts, found_names

VTAB_LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
VTAB_BOTH = "train800val200.txt"
PICTURES = ("", "images", "Images", "jpg")  # where FGVC's paths may start


def read_vtab(
    root: Path, classes: int, wanted: Collection[str], problems: list[str], *, retrain: bool = False
) -> NamedParts:
    """Reads a task of VTAB-1k as it is distributed: text files of "images/train800/000000.jpg 12".

    Args:
        classes: a class is named by its number, 0 to classes - 1.
        problems: gets a line for each absent list or file, each broken line and each label out of range.
        retrain: read `train800val200.txt` as train, and no val.
    """
    together = retrain and {"train", "val"} <= set(wanted)
    lists = {"train": VTAB_BOTH, "test": VTAB_LISTS["test"]} if together else VTAB_LISTS
    allowed = {str(label) for label in range(classes)}
    parts = {}
    for part, name in lists.items():
        if part not in wanted:
            continue
        found = _lines(root / name, problems)
        lines = [(where, image, str(int(label)) if label.isdecimal() else label) for where, image, label in found]
        problems += [
            f"{where}: labels out of range: {label!r} is not one of the {classes} classes (0 to {classes - 1})"
            for where, _, label in lines
            if label not in allowed
        ]
        good = [line for line in lines if line[2] in allowed]
        parts[part] = _existing(root / name, good, [root], problems)
    return parts


def read_fgvc(root: Path, wanted: Collection[str], problems: list[str]) -> NamedParts:
    """Reads a data set of FGVC with the split files of VPT: {"relative/image.jpg": label}.

    Args:
        root: folder of the data set, with train.json, test.json and, where published, val.json.
        problems: gets a line for each absent list or file and each entry that is not a path with a label.
    """
    bases = [root / name for name in PICTURES if (root / name).is_dir()]
    parts = {}
    for part in PARTS:
        path = root / f"{part}.json"
        if part not in wanted or (part == "val" and not path.is_file()):
            continue
        parts[part] = _existing(path, _entries(path, problems), bases, problems)
    return parts


def read_list(path: Path, root: Path, problems: list[str]) -> list[Named]:
    """Reads a user's list, in its order: a line is a path relative to the data folder, and a class after blank or tab.

    Args:
        path: text file, UTF-8.
        problems: gets a line for each broken line and each absent file.
    """
    return _existing(path, _lines(path, problems), [root], problems)


Line = tuple[str, str, str]
"""Where it is written (file and line), path, class."""


def _lines(path: Path, problems: list[str]) -> list[Line]:
    text = _text(path, problems)
    lines = []
    for number, line in enumerate((text or "").splitlines(), 1):
        if not line.strip():
            continue
        words = [word.strip() for word in (line.rsplit("\t", 1) if "\t" in line else line.rsplit(maxsplit=1))]
        if len(words) == 2 and all(words):
            lines.append((f"{path}:{number}", words[0], words[1]))
        else:
            problems.append(f"{path}:{number}: {line.strip()!r} is not a path with a class, such as 'images/a.jpg 3'")
    if text is not None and not lines:
        problems.append(f"{path}: names no image; a line is a path and a class")
    return lines


def _entries(path: Path, problems: list[str]) -> list[Line]:
    if (text := _text(path, problems)) is None:
        return []
    try:
        listed = json.loads(text)
    except ValueError as error:
        problems.append(f"{path}: damaged list ({error}); get it again")
        return []
    if not isinstance(listed, dict) or not listed:
        problems.append(f'{path}: not a list of images, such as {{"a.jpg": 3}}')
        return []
    wrong = {image: label for image, label in listed.items() if type(label) not in (int, str)}
    problems += [f"{path}: {i!r} has the label {label!r}; a number or a name is needed" for i, label in wrong.items()]
    return [(str(path), image, str(label)) for image, label in listed.items() if image not in wrong]


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        found = found_names(path.parent) if path.parent.is_dir() else "no such folder"
        problems.append(f"{path}: no such list (found: {found}); see data/README.md for the layout")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: can't be read ({error})")
    return None


def _existing(path: Path, lines: Iterable[Line], bases: list[Path], problems: list[str]) -> list[Named]:
    """Returns the lines whose file is there, under the first folder that has it; lists the others."""
    found: dict[str, Named] = {}
    absent: list[Line] = []
    for where, image, label in lines:
        base = next((base for base in bases if (base / image).is_file()), None)
        if base is None:
            absent.append((where, image, label))
        elif image in found:
            problems.append(f"{where}: names {image} a second time")
        else:
            found[image] = (base / image, label)
    if absent and not found and len(absent) > 1:  # one cause, one line
        problems.append(f"{path}: none of its {len(absent)} images is in {bases[0]}, such as {absent[0][1]}")
    else:
        problems += [f"{where}: names {image}, which is not in {bases[0]}" for where, image, _ in absent]
    return list(found.values())
