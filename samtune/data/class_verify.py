"""Checks the images of a data set of classes before anything is trained on it.

All problems are listed at once. The answer is remembered until a file changes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from samtune.data.cache import remember
from samtune.data.class_types import NamedParts
from samtune.data.layouts import DATASETS, read_layout
from samtune.data.pairs import PARTS, list_problems, open_picture, to_rgb
from samtune.data.verify import VerifyReport, verify_folder
from samtune.download import file_sha256
from samtune.errors import DataError

DECODED = {"train": 100_000, "val": 100_000, "test": 5_000}
"""Largest part whose images are decoded before a run: VTAB-1k's test images and ImageNet's are too many for that."""
COMPARED = 100_000  # more images than that are not compared between parts


def verify_data(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a data folder and decodes everything in it.

    Args:
        folder: with pairs of image and mask, or with classes; which of them, it tells by itself.
        name: of a data set of `DATASETS`, which is one of classes.

    Returns:
        All errors and warnings.

    Raises:
        DataError: unknown name.
    """
    if name is None and not _has_classes(Path(folder)):
        return verify_folder(folder)
    layout = read_layout(folder, name)
    parts, errors, warnings = layout.parts, layout.problems, layout.notes
    if name is not None and DATASETS[name].layout == "vtab":  # its common list names other files
        both = read_layout(folder, name, retrain=True)
        parts = parts | {"train and val": both.parts["train"]}
        errors += [line for line in both.problems if line not in errors]
    errors += _undecodable([path for part in parts.values() for path, _ in part])
    errors += class_problems(layout.parts, layout.classes) if {"train", "all"} & set(parts) else []
    (errors if name is None else warnings).extend(same_images(parts))
    return VerifyReport(tuple(errors), tuple(warnings))


def check_classes(folder: Path, parts: NamedParts, problems: Sequence[str], *, published: bool) -> list[str]:
    """Checks what a run is about to use, once.

    Every image of train and val is decoded, and every one of test, unless they are very many (`DECODED`): a
    damaged image of these is an error when it is used.

    Args:
        folder: the data folder, for messages.
        parts: its images.
        problems: what is already known to be wrong with the layout.
        published: the split is a published one, which may share images between its parts: that is only noted.

    Returns:
        Notes on images that are in two parts.

    Raises:
        DataError: lists every problem with its file and reason.
    """
    found = list(problems)
    many = [part for part in parts if len(parts[part]) > DECODED[part]]
    paths = sorted({path for part in parts if part not in many for path, _ in parts[part]})
    found += remember("decoded-1", paths, lambda: _undecodable(paths))
    same = same_images(parts)
    if not published:
        found += [f"{line}; take it out of one part" for line in same]
    if found:
        raise DataError(list_problems(f"{folder} can't be used", found))
    return [f"{len(same)} image(s) of this published split are in two of its parts, such as {same[0]}"] if same else []


def class_problems(parts: NamedParts, classes: Collection[str] | None) -> list[str]:
    """Lists what is wrong with the classes: only one to learn, or some that are not in training.

    Args:
        parts: with "train" or "all".
        classes: their names; None takes those of the training images.

    Returns:
        A line per problem.
    """
    trained = {name for _, name in parts.get("train", parts.get("all", ()))}
    known = set(classes or trained)
    problems = []
    if len(trained) == 1:
        problems.append(f"one class only ({min(trained)}): there is nothing to tell apart")
    for part, images in parts.items():
        examples: dict[str, Path] = {}
        for path, name in images:
            if name not in known:
                examples.setdefault(name, path)
        problems += [
            f"{part}: class {name!r} of {path} is not among the {len(known)} classes of train"
            for name, path in sorted(examples.items())
        ]
    return problems


def same_images(parts: NamedParts) -> list[str]:
    """Lists the image files whose content is in two of train, val and test.

    Args:
        parts: up to 100,000 images in all; of more, none is compared.

    Returns:
        A line per file that repeats one of another part.
    """
    where = [(part, path) for part in PARTS for path, _ in parts.get(part, ())]
    if len(where) > COMPARED:
        return []
    sizes: dict[int, set[str]] = {}
    bytes_of = [_size(path) for _, path in where]
    for (part, _), size in zip(where, bytes_of, strict=True):
        sizes.setdefault(size, set()).add(part)
    # Equal files have equal sizes: only where a size is in two parts is a file opened.
    doubtful = [item for item, size in zip(where, bytes_of, strict=True) if size > 0 and len(sizes[size]) > 1]
    paths = [path for _, path in doubtful]
    hashes = remember("contents-1", paths, lambda: [file_sha256(path) for path in paths])
    first: dict[str, tuple[str, Path]] = {}
    problems = []
    for (part, path), content in zip(doubtful, hashes, strict=True):
        other, twin = first.setdefault(content, (part, path))
        if other != part:
            problems.append(f"{path} ({part}) is the same image as {twin} ({other})")
    return problems


def _undecodable(paths: Sequence[Path]) -> list[str]:
    """Decodes pictures, several at a time; returns a line for each that can't be."""

    def problem(path: Path) -> str | None:
        try:
            with open_picture(path) as picture:
                to_rgb(picture)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return [line for line in threads.map(problem, paths) if line is not None]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a dangling link: decoding says so
        return -1


def _has_classes(folder: Path) -> bool:
    """Tells classes from pairs: no images/ or masks/ where pairs have them, but folders, or lists with labels."""
    if not folder.is_dir():
        return False
    if any((folder / name).is_file() for name in ("train.json", "train800.txt", "train800val200.txt")):
        return True
    places = [folder, *(folder / part for part in PARTS)]
    if any((place / name).is_dir() for place in places for name in ("images", "masks")):
        return False
    return any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
