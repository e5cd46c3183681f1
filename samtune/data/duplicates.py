"""Identical and nearly identical images: what must not sit on both sides of a split.

Frames of one video are nearly the same picture. Two images count as near-duplicates when their difference
hashes (`samtune.data.facts`) differ in at most 4 of 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from samtune.data.facts import ImageFacts, image_facts
from samtune.errors import DataError

MAX_DISTANCE = 4  # of 64 bits


def hash_images(paths: Sequence[Path]) -> list[ImageFacts]:
    """Returns `image_facts`; the `DataError` of an image that can't be read is raised."""
    found = []
    for facts in image_facts(paths):
        if isinstance(facts, DataError):
            raise facts
        found.append(facts)
    return found


def near_pairs(images: Sequence[ImageFacts]) -> Iterator[tuple[int, int]]:
    """Yields the near-duplicates among images as indices (i, j), i < j, in that order."""
    hashes = np.array([facts.difference for facts in images], dtype=np.uint64)
    for i in range(len(hashes)):
        distance = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        yield from ((i, i + 1 + int(j)) for j in np.flatnonzero(distance <= MAX_DISTANCE))


def group_near(images: Sequence[ImageFacts]) -> list[list[int]]:
    """Groups images so that near-duplicates, directly or through others, share a group.

    Returns sorted groups of indices, in the order of their first member.
    """
    root = list(range(len(images)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in near_pairs(images):
        first, second = sorted((find(i), find(j)))
        root[second] = first
    groups: dict[int, list[int]] = {}
    for i in range(len(root)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())
