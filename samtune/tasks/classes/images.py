"""Images with one class each, and how they are split: the values that the readers of class data share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samtune.data.pictures import PARTS

Named = tuple[Path, str]
"""An image file and the name of its class."""

NamedParts = dict[str, list[Named]]
"""Part ("train", "val", "test") to its images; a part that the folder doesn't have is absent."""


@dataclass(frozen=True)
class LabelledImage:
    """An image file with its class.

    Attributes:
        image: path of the image.
        label: index of the class.
        name: path relative to the data folder, with forward slashes; unique.
    """

    image: Path
    label: int
    name: str


@dataclass(frozen=True)
class ClassSplits:
    """The parts of a data set of classes, disjoint.

    Attributes:
        classes: name of each class; a label is an index into it.
        train: images to score and train on.
        val: images to choose by; empty when train and val train together.
        test: images that are looked at once.
        notes: what a user should know about how the parts came about.
    """

    classes: tuple[str, ...]
    train: list[LabelledImage]
    val: list[LabelledImage]
    test: list[LabelledImage]
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """Returns the SHA-256 of names and classes in each part, to tell whether two runs used the same split."""
        digest = hashlib.sha256()
        for part in PARTS:
            for item in getattr(self, part):
                digest.update(f"{part}/{item.name}\t{self.classes[item.label]}\n".encode())
        return digest.hexdigest()


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct names of classes in order: as numbers if all are, else as text."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def label_images(images: Sequence[Named], classes: Sequence[str], root: Path) -> list[LabelledImage]:
    """Labels images by the names of their classes.

    Args:
        images: every name is in `classes`.
        classes: in the order of the labels.
        root: what names are relative to.

    Returns:
        One item per image, sorted by name.
    """
    index = {name: label for label, name in enumerate(classes)}
    items = [LabelledImage(path, index[name], _relative(path, root)) for path, name in images]
    return sorted(items, key=lambda item: item.name)


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:  # a list or an option names a file outside of the data folder
        return Path(os.path.relpath(path, root)).as_posix()
