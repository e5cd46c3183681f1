"""Identical and nearly identical images: what must not sit on both sides of a split.

Frames of one video are nearly the same picture. Two images count as near-duplicates when their difference
hashes (`samtune.data.facts`) differ in at most 4 of 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtune.data.facts import image_facts
from samtune.errors import DataError

MAX_DISTANCE = 4  # of 64 bits


@dataclass(frozen=True)
class ImageHashes:
    """Hashes of a list of images.

    Attributes:
        content: SHA-256 of size and pixels of each image.
        difference: (N,) uint64, the difference hashes.
    """

    content: list[str]
    difference: np.ndarray

    def only(self, indices: Sequence[int]) -> ImageHashes:
        """Returns the hashes of some of the images, in that order."""
        return ImageHashes([self.content[i] for i in indices], self.difference[list(indices)])

    def near(self, index: int, start: int = 0) -> np.ndarray:
        """Returns the indices, from `start` on, of the near-duplicates of image `index`."""
        distance = np.bitwise_count(self.difference[start:] ^ self.difference[index])
        return np.flatnonzero(distance <= MAX_DISTANCE) + start


def hash_images(paths: Sequence[Path]) -> ImageHashes:
    """Hashes images; remembered as long as a file does not change.


    Returns:
        The hashes, in the order of `paths`.

    Raises:
        DataError: an image can't be read.
    """
    found = []
    for facts in image_facts(paths):
        if isinstance(facts, DataError):
            raise facts
        found.append(facts)
    return ImageHashes([f.content for f in found], np.array([f.difference for f in found], dtype=np.uint64))


def group_near(hashes: ImageHashes) -> list[list[int]]:
    """Groups images so that near-duplicates, directly or through others, share a group.


    Returns:
        Groups of indices, each sorted, in the order of their first member.
    """
    root = list(range(len(hashes.content)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i in range(len(root)):
        for j in hashes.near(i, start=i + 1):
            a, b = sorted((find(i), find(int(j))))
            root[b] = a
    groups: dict[int, list[int]] = {}
    for i in range(len(root)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())
