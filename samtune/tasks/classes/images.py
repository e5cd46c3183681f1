"""Images with one class each, and their cuts: missing parts, and a few images per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samtune.data.duplicates import group_near, hash_images
from samtune.data.facts import ImageFacts
from samtune.data.splits import PARTS, Splits, cut_groups
from samtune.errors import DataError
from samtune.tasks.classes.layouts.folders import Named

RATIO = 0.1  # of the images of a class, for each part that is cut
GROUPED = 100_000  # among more images, near-duplicates are not looked for


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
class ClassSplits(Splits[LabelledImage]):
    """The parts of a data set of classes, disjoint; val is empty when train and val train together.

    Attributes:
        classes: name of each class; a label is an index into it.
    """

    classes: tuple[str, ...] = field(kw_only=True)

    def digest(self) -> str:
        """Returns the SHA-256 of names and classes in each part, to tell whether two runs used the same split."""
        digest = hashlib.sha256()
        for part in PARTS:
            for item in getattr(self, part):
                digest.update(f"{part}/{item.name}\t{self.classes[item.label]}\n".encode())
        return digest.hexdigest()


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


def cut_parts(
    train: Sequence[LabelledImage], missing: Sequence[str], *, classes: Sequence[str], seed: int, notes: list[str]
) -> dict[str, list[LabelledImage]]:
    """Cuts parts from train: a tenth of every class each, near-duplicates of a class kept together.

    A class whose images are nearly all alike (digits on black, say) has only identical ones kept together; one that
    is too small to be cut stays in train. Both are noted.

    Args:
        train: sorted images.
        missing: names of the parts, such as ("val", "test").
        classes: names of the classes.
        seed: of the cut.
        notes: gets what the user should know.

    Returns:
        "train" and the missing parts, each sorted.

    Raises:
        DataError: a part would be empty.
    """
    members: dict[int, list[int]] = {}
    for index, item in enumerate(train):
        members.setdefault(item.label, []).append(index)
    images = hash_images([item.image for item in train]) if len(train) <= GROUPED else []
    chosen: dict[str, list[int]] = {"train": [], **{part: [] for part in missing}}
    alike, small = [], []
    for label, indices in sorted(members.items()):
        groups, grouped = _groups(indices, images, len(missing) + 1)
        if not grouped:
            alike.append(classes[label])
        if len(groups) <= len(missing):
            small.append(classes[label])
            chosen["train"] += indices
            continue
        counts = dict.fromkeys(missing, max(1, round(RATIO * len(indices))))
        for part, taken in cut_groups(groups, counts, (seed, label)).items():
            chosen[part] += taken
    if not all(chosen.values()):
        raise DataError(
            f"{len(train)} images are too few to cut {' and '.join(missing)} from train; add images, or give the parts"
        )
    kept = "near-duplicates kept together" if images else f"more than {GROUPED:,} images are not compared"
    sizes = ", ".join(f"{len(chosen[part])} {part}" for part in chosen)
    notes.append(f"{' and '.join(missing)} cut from train with seed {seed}, by class, {kept}: {sizes}")
    if alike:
        notes.append(f"only identical images kept together where all of a class are alike: {_some(alike)}")
    if small:
        notes.append(f"too few images to cut, all stay in train: {_some(small)}")
    return {part: [train[i] for i in sorted(indices)] for part, indices in chosen.items()}


def few_shots(train: Sequence[LabelledImage], shots: int, *, classes: Sequence[str], seed: int) -> list[LabelledImage]:
    """Draws the same number of images of every class.

    Args:
        train: sorted images.
        shots: images per class, at least 1.
        classes: names of all classes.
        seed: of the draw.

    Returns:
        The drawn images, sorted as before.

    Raises:
        DataError: classes with fewer images, all of them named.
    """
    if shots < 1:
        raise DataError(f"data.shots is {shots}; at least 1 image per class is needed")
    members: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index, item in enumerate(train):
        members[item.label].append(index)
    few = [f"{classes[label]} ({len(indices)})" for label, indices in members.items() if len(indices) < shots]
    if few:
        raise DataError(f"data.shots is {shots}, but these classes have fewer training images: {_some(few)}")
    drawn = []
    for label, indices in members.items():
        drawn += np.random.default_rng((seed, label)).choice(indices, shots, replace=False).tolist()
    return [train[index] for index in sorted(drawn)]


def _groups(indices: list[int], images: list[ImageFacts], needed: int) -> tuple[list[list[int]], bool]:
    """Groups the near-duplicates of a class; if these are fewer than needed, the identical images, and False."""
    if not images:
        return [[index] for index in indices], True
    near = [[indices[i] for i in group] for group in group_near([images[index] for index in indices])]
    if len(near) >= needed:
        return near, True
    identical: dict[str, list[int]] = {}
    for index in indices:
        identical.setdefault(images[index].content, []).append(index)
    return list(identical.values()), False


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:  # a list or an option names a file outside of the data folder
        return Path(os.path.relpath(path, root)).as_posix()


def some_names(names: Sequence[str]) -> str:
    """Returns up to ten names of classes."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} class(es): {some_names(names)}"
