"""Cuts of labelled images: missing parts, and a few images per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samtune.data.duplicates import ImageHashes, group_near, hash_images
from samtune.errors import DataError
from samtune.tasks.classes.images import LabelledImage

RATIO = 0.1  # of the images of a class, for each part that is cut
GROUPED = 100_000  # among more images, near-duplicates are not looked for

LabelledParts = dict[str, list[LabelledImage]]


def cut_parts(
    train: Sequence[LabelledImage], missing: Sequence[str], *, classes: Sequence[str], seed: int, notes: list[str]
) -> LabelledParts:
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
    hashes = hash_images(train) if len(train) <= GROUPED else None
    chosen: dict[str, list[int]] = {"train": [], **{part: [] for part in missing}}
    alike, small = [], []
    for label, indices in sorted(members.items()):
        groups, grouped = _groups(indices, hashes, len(missing) + 1)
        if not grouped:
            alike.append(classes[label])
        if len(groups) <= len(missing):
            small.append(classes[label])
            chosen["train"] += indices
            continue
        order = [groups[i] for i in np.random.default_rng((seed, label)).permutation(len(groups))]
        for part, taken in _share(order, missing, max(1, round(RATIO * len(indices)))).items():
            chosen[part] += taken
    if not all(chosen.values()):
        raise DataError(
            f"{len(train)} images are too few to cut {' and '.join(missing)} from train; add images, or give the parts"
        )
    kept = "near-duplicates kept together" if hashes is not None else f"more than {GROUPED:,} images are not compared"
    counts = ", ".join(f"{len(chosen[part])} {part}" for part in chosen)
    notes.append(f"{' and '.join(missing)} cut from train with seed {seed}, by class, {kept}: {counts}")
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


def _groups(indices: list[int], hashes: ImageHashes | None, needed: int) -> tuple[list[list[int]], bool]:
    """Groups the near-duplicates of a class; if these are fewer than needed, the identical images, and False."""
    if hashes is None:
        return [[index] for index in indices], True
    own = ImageHashes([hashes.content[i] for i in indices], hashes.difference[indices])
    near = [[indices[i] for i in group] for group in group_near(own)]
    if len(near) >= needed:
        return near, True
    identical: dict[str, list[int]] = {}
    for index in indices:
        identical.setdefault(hashes.content[index], []).append(index)
    return list(identical.values()), False


def _share(groups: list[list[int]], missing: Sequence[str], count: int) -> dict[str, list[int]]:
    """Gives each missing part groups of up to `count` images in all, at least one group; train gets the others."""
    rest = list(groups)
    shares: dict[str, list[int]] = {}
    for part in missing:
        taken: list[int] = []
        for group in list(rest):
            if len(taken) + len(group) <= count:
                taken += group
                rest.remove(group)
        if not taken:
            taken = min(rest, key=len)
            rest.remove(taken)
        shares[part] = taken
    return {"train": [index for group in rest for index in group], **shares}


def _some(names: Sequence[str]) -> str:
    """Returns up to ten names, and how many there are."""
    return f"{len(names)} class(es): {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
