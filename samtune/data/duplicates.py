"""Identical and nearly identical images: what must not sit on both sides of a split.

Frames of one video are nearly the same picture. Two images count as near-duplicates when their difference
hashes (grey image at 9 x 8 with the area filter, sign of the horizontal steps) differ in at most 4 of 64
bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from samtune.data.cache import remember
from samtune.data.pictures import read_image
from samtune.types import ImageArray

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

    def near(self, index: int, start: int = 0) -> np.ndarray:
        """Returns the indices, from `start` on, of the near-duplicates of image `index`."""
        distance = np.bitwise_count(self.difference[start:] ^ self.difference[index])
        return np.flatnonzero(distance <= MAX_DISTANCE) + start


class HasImage(Protocol):
    """What has an image file: a pair with its mask, or an image with its class."""

    @property
    def image(self) -> Path: ...


def hash_images(items: Sequence[HasImage]) -> ImageHashes:
    """Hashes images; remembered as long as no file changes.

    Args:
        items: whose images to hash.

    Returns:
        The hashes, in the order of `items`.

    Raises:
        DataError: an image can't be read.
    """

    def answer() -> list[tuple[str, int]]:
        images = (read_image(item.image) for item in items)
        return [(_content(image), difference_hash(image)) for image in images]

    rows = remember("hashes-1", [item.image for item in items], answer)
    return ImageHashes([row[0] for row in rows], np.array([row[1] for row in rows], dtype=np.uint64))


def difference_hash(image: ImageArray) -> int:
    """Returns the 64-bit difference hash of an (H, W, 3) uint8 image."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    levels = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def group_near(hashes: ImageHashes) -> list[list[int]]:
    """Groups images so that near-duplicates, directly or through others, share a group.

    Args:
        hashes: of N images.

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


def _content(image: ImageArray) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
