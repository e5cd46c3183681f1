"""Which image belongs to train, val and test: the parts, cuts that make them, and images that two of them share.

A published split stays as it is. What is missing is cut from train: seeded, with near-duplicates kept together, so that
no frame of a video is trained on and tested on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from samtune.base.disk import write_text
from samtune.data.cache import file_hashes
from samtune.data.facts import ImageFacts, group_near, hash_images, near_across
from samtune.errors import DataError

PARTS = ("train", "val", "test")
NAMED = 20  # near-duplicates that are named
LABEL_LISTS = ("train.json", "train800.txt", "train800val200.txt")  # of FGVC and VTAB-1k: pictures with classes


class Item(Protocol):
    """An image of any data set: a pair of image and mask, or an image with a class."""

    @property
    def name(self) -> str:
        """The name, unique in its data set."""

    @property
    def image(self) -> Path:
        """The image file."""


T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Splits(Generic[ItemT]):
    """The parts of a data set, disjoint, and notes on what a user should know about them and their files."""

    train: list[ItemT]
    val: list[ItemT]
    test: list[ItemT]
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """Returns the SHA-256 of the names in each part, to tell whether two runs used the same split."""
        text = "\n".join(f"{part}/{item.name}" for part in PARTS for item in getattr(self, part))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_few(self, shots: int, seed: int) -> Self:
        """Returns the same parts with so many images of train, drawn by the seed.

        Raises:
            DataError: train has fewer.
        """
        if shots > len(self.train):
            raise DataError(f"data.shots is {shots}, but train has {len(self.train)} image(s). Lower data.shots.")
        drawn = sorted(np.random.default_rng(seed).choice(len(self.train), shots, replace=False).tolist())
        note = f"{shots} of {len(self.train)} training images, drawn with seed {seed}"
        return replace(self, train=[self.train[index] for index in drawn], notes=[note, *self.notes])


@dataclass(frozen=True)
class Given:
    """What a user names for a part in place of what the data folder says; None leaves that part alone.

    Each is a folder or a list, relative to the working folder or to the data folder.
    """

    train: str | Path | None = None
    val: str | Path | None = None
    test: str | Path | None = None

    def parts(self) -> dict[str, str | Path]:
        """Returns the parts that are named."""
        return {part: value for part, value in vars(self).items() if value is not None}


NONE_GIVEN = Given()


@dataclass(frozen=True)
class Reader(Generic[T]):
    """How a task reads the folder or list that a user names for a part; `wanted` is what is "neither" in messages."""

    folder: Callable[[Path], list[T]]
    file: Callable[[Path], list[T]]
    path_of: Callable[[T], Path]
    wanted: str


def put_given(parts: dict[str, list[T]], given: Given, root: Path, reader: Reader[T]) -> list[str]:
    """Puts what a user names into its parts; train of the data folder goes without it: it is asked for elsewhere.

    Args:
        parts: those of the data folder `root`; changed in place.

    Returns:
        A line for each part that names nothing.
    """
    problems = []
    for part, value in given.parts().items():
        path = next((path for path in (Path(value), root / value) if path.is_dir() or path.is_file()), None)
        parts[part] = [] if path is None else reader.folder(path) if path.is_dir() else reader.file(path)
        if path is None:
            problems.append(f"data.{part}: {value} is neither {reader.wanted} (tried {value} and {root / value})")
    if "train" in parts and given.train is None:
        taken = {os.path.abspath(reader.path_of(item)) for part in given.parts() for item in parts[part]}
        parts["train"] = [item for item in parts["train"] if os.path.abspath(reader.path_of(item)) not in taken]
    return problems


def cut_groups(
    groups: Sequence[list[int]], counts: Mapping[str, int], seed: int | tuple[int, ...]
) -> dict[str, list[int]]:
    """Moves whole groups, in a drawn order, from train to the parts that are missing.

    Args:
        counts: how many images each missing part gets at most. A group that doesn't fit is passed over; where none
            fits, the part gets the smallest one.

    Returns:
        The indices of "train" and of each missing part, in the drawn order.
    """
    rest = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    parts: dict[str, list[int]] = {}
    for part, count in counts.items():
        taken, left = _fitting(rest, count)
        if count and rest and not taken:
            taken = [min(rest, key=len)]
            left = [group for group in rest if group is not taken[0]]
        rest, parts[part] = left, [index for group in taken for index in group]
    return {"train": [index for group in rest for index in group], **parts}


def choose_part(items: Sequence[Item], share: float, seed: int) -> list[str]:
    """Draws a part of a data set with near-duplicates on one side.

    Images are drawn one by one, each with its near-duplicates; an image whose group doesn't fit is passed over.

    Args:
        share: of the images, in (0, 1); the part has at most that many, rounded down.

    Returns:
        The sorted names of the part, which may be none.
    """
    groups = group_near(hash_images([item.image for item in items]))
    group_of = {index: group for group in groups for index in group}
    order = np.random.default_rng(seed).permutation(len(items)).tolist()
    drawn = {group_of[index][0]: group_of[index] for index in order}  # each group once, at its first image
    chosen, _ = _fitting(list(drawn.values()), int(len(items) * share))
    return sorted(items[index].name for group in chosen for index in group)


def repeated(where: Sequence[tuple[str, T]], keys: Sequence[Hashable]) -> list[tuple[str, T, str, T]]:
    """Lists the items that two parts share.

    Args:
        where: part and item, part by part.
        keys: of each item, equal for equal images.

    Returns:
        (part, item, other part, its first item with that key) of each item that repeats one of another part.
    """
    first: dict[Hashable, tuple[str, T]] = {}
    found = [(part, item, *first.setdefault(key, (part, item))) for (part, item), key in zip(where, keys, strict=True)]
    return [line for line in found if line[0] != line[2]]


def same_image(place: str, path: Path, other: str, twin: Path) -> str:
    """Says that an image of one place, a part or a class, is the same as one of another place."""
    if path == twin:
        return f"{path}: is in {other} and in {place}"
    return f"{path} ({place}) is the same image as {twin} ({other})"


def near_note(where: Sequence[tuple[str, Path]], images: Sequence[ImageFacts]) -> list[str]:
    """Returns a note that names the near-duplicates in two parts, if there are any.

    Args:
        where: part and file of each image.
        images: their facts, in the same order.
    """
    count, first = near_across([part for part, _ in where], images, most=NAMED)
    if not count:
        return []
    shown = first[:1] if count > len(images) else first  # frames of videos, or pictures too alike to be told apart
    named = [f"{where[i][1]} ({where[i][0]}) and {where[j][1]} ({where[j][0]})" for i, j in shown]
    rest = ["..."] if count > len(shown) else []
    return [f"{count} near-duplicate pair(s) across parts, which may flatter the scores: {'; '.join(named + rest)}"]


def _fitting(groups: Sequence[list[int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the groups that fit, one after the other, into `count` places, and the others."""
    taken: list[list[int]] = []
    left: list[list[int]] = []
    for group in groups:
        fits = len(group) <= count
        (taken if fits else left).append(group)
        count -= len(group) if fits else 0
    return taken, left


FOLDER = "splits"
HASHED = 5_000  # val and test images; whether one was trained on, the list of train says


def save_splits(folder: Path, splits: Splits[Any]) -> None:
    """Writes the split that a run used beside its files, so that a later evaluation knows what was trained on.

    `splits/train.txt`, `val.txt` and `test.txt` have a line per image: NAME, a tab, and the SHA-256 of the file. Names
    repeat between data sets; contents do not. A val or test part of more than `HASHED` images has the size of the
    file, in bytes, in place of the hash.
    """
    for part, lines in _lists(splits).items():
        write_text(folder / FOLDER / f"{part}.txt", "".join(lines))


def changed_since(folder: Path, splits: Splits[Any]) -> list[str]:
    """Lists the names of images that are not those that `save_splits` wrote down, in the parts or in content."""
    changed = set[str]()
    for part, lines in _lists(splits).items():
        file = folder / FOLDER / f"{part}.txt"
        before = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        changed |= {line.rpartition("\t")[0] for line in set(before) ^ set(lines)}
    return sorted(changed)


def _lists(splits: Splits[Any]) -> dict[str, list[str]]:
    """Returns the lines of `save_splits` by part."""
    lists = {}
    for part in PARTS:
        items: Sequence[Item] = getattr(splits, part)
        paths = [item.image for item in items]
        short = part != "train" and len(items) > HASHED
        marks = [str(path.stat().st_size) for path in paths] if short else file_hashes(paths)
        lists[part] = [f"{item.name}\t{mark}\n" for item, mark in zip(items, marks, strict=True)]
    return lists


def trained_on(checkpoint: Path, items: Sequence[Item]) -> int:
    """Counts the items that the run of a checkpoint trained on, by its folder's list; 0 when there is none."""
    path = checkpoint.parent / FOLDER / "train.txt"
    if not path.is_file():
        return 0
    trained = {line.rpartition("\t")[2] for line in path.read_text(encoding="utf-8").splitlines()}
    return sum(content in trained for content in file_hashes([item.image for item in items]))
