"""Checks the images of a data set of classes before anything is trained on it.

All problems are listed at once. What was seen in a file is remembered until it changes.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from samtune.data.cache import file_hashes
from samtune.data.facts import image_facts
from samtune.data.splits import LABEL_LISTS, PARTS, repeated
from samtune.data.verify import VerifyReport, list_problems
from samtune.errors import DataError
from samtune.tasks.classes.layouts.folders import NamedParts
from samtune.tasks.classes.layouts.known import DATASETS, read_layout
from samtune.tasks.classes.views import check_shape

DECODED = {"train": 100_000, "val": 100_000, "test": 5_000}
"""Largest parts that are decoded before a run: VTAB-1k's test images and ImageNet's are too many for that."""
COMPARED = 100_000  # of more images than that, only the paths are compared between parts


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder has lists with labels, or folders without images/ and masks/ of pairs."""
    if not folder.is_dir():
        return False
    if any((folder / name).is_file() for name in LABEL_LISTS):
        return True
    places = [folder, *(folder / part for part in PARTS)]
    if any((place / name).is_dir() for place in places for name in ("images", "masks")):
        return False
    return any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a data folder (of class folders, or of a key of `DATASETS`) and decodes everything in it.

    Raises:
        ConfigError: unknown name.
        DataError: the folder doesn't exist.
    """
    layout = read_layout(folder, name)
    parts, errors, warnings = layout.parts, layout.problems, layout.notes
    if name is not None and DATASETS[name].layout == "vtab":  # its common list names other files
        both = read_layout(folder, name, retrain=True)
        parts = parts | {"train and val": both.parts["train"]}
        errors += [line for line in both.problems if line not in errors]
    errors += _unusable([path for part in parts.values() for path, _ in part])
    errors += class_problems(layout.parts, layout.classes) if {"train", "all"} & set(parts) else []
    (errors if name is None else warnings).extend(line for _, line in _repeats(parts))
    return VerifyReport(tuple(errors), tuple(warnings))


def check_classes(
    folder: Path, parts: NamedParts, problems: Sequence[str], *, published: Collection[str] = ()
) -> list[str]:
    """Checks what a run is about to use, once; returns notes on images that are in two parts.

    Every image of train and val is decoded, and every one of test, unless they are very many (`DECODED`): a
    damaged image of these is an error when it is used.

    Args:
        folder: the data folder, for messages.
        problems: what is already known to be wrong with the layout.
        published: parts of a published split. Images that two of them share are only noted; what a user puts in
            the place of a part must not be in another one.

    Raises:
        DataError: lists every problem with its file and reason.
    """
    decoded = [images for part, images in parts.items() if len(images) <= DECODED[part]]
    found = [*problems, *_unusable(sorted({path for images in decoded for path, _ in images}))]
    noted: list[str] = []
    refused: list[str] = []
    for shared, line in _repeats(parts):
        (noted if shared <= set(published) else refused).append(line)
    if published and refused:  # these may be a whole list
        advice = "change data.train, .val or .test"
        found.append(f"{len(refused)} image(s) are in two parts, such as {refused[0]}; {advice}")
    else:
        found += [f"{line}; take it out of one part" for line in refused]
    if found:
        raise DataError(list_problems(f"{folder} can't be used", found))
    if not noted:
        return []
    return [f"{len(noted)} image(s) of this published split are in two of its parts, such as {noted[0]}"]


def class_problems(parts: NamedParts, classes: Collection[str] | None) -> list[str]:
    """Lists what is wrong with the classes: only one to learn, or some that are not in training.

    Args:
        classes: their names; None takes those of the training images.
    """
    trained = {name for _, name in parts.get("train", parts.get("all", ()))}
    known = set(classes or trained)
    problems = []
    if len(trained) == 1:
        problems.append(f"one class only ({min(trained)}): there is nothing to tell apart")
    for part, images in parts.items():
        examples = {name: path for path, name in reversed(images) if name not in known}  # the first of each class
        problems += [
            f"{part}: class {name!r} of {path} is not among the {len(known)} classes of train"
            for name, path in sorted(examples.items())
        ]
    return problems


def _repeats(parts: NamedParts) -> list[tuple[set[str], str]]:
    """Returns the two parts of each image file whose content is in two of train, val and test, and a line on it."""
    where = [(part, path) for part in PARTS for path, _ in parts.get(part, ())]
    if len(where) > COMPARED:
        keys = [os.path.abspath(path) for _, path in where]
    else:
        where = _of_equal_size(where)
        keys = file_hashes([path for _, path in where])
    found = repeated(where, keys)
    return [({a, b}, f"{path} ({a}) is the same image as {twin} ({b})") for a, path, b, twin in found]


def _of_equal_size(where: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Returns the files whose size is in two parts: equal files have equal sizes, so no other has to be opened."""
    sizes = [_size(path) for _, path in where]
    parts = Counter(size for size, _ in {(size, part) for size, (part, _) in zip(sizes, where, strict=True)})
    return [item for item, size in zip(where, sizes, strict=True) if size > 0 and parts[size] > 1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a dangling link: decoding says so
        return -1


def _unusable(paths: Sequence[Path]) -> list[str]:
    """Returns a line for each picture that can't be decoded or is too long; those that are new are decoded."""
    problems = []
    for path, facts in zip(paths, image_facts(paths), strict=True):
        try:
            if isinstance(facts, DataError):
                raise facts
            check_shape(facts.width, facts.height, path)
        except DataError as error:
            problems.append(str(error))
    return problems
