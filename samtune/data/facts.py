"""What one decoding of an image file shows: all that checks and cuts need to know of it, remembered per file.

A first start decodes every image once, several at a time; a later one decodes those that are new or changed.
Near-duplicates, such as frames of one video, must not sit on both sides of a split: their difference hashes differ in
at most 4 of 64 bits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from samtune.data.cache import recall
from samtune.data.pictures import ORIENTATION, grey_depth, open_picture, to_rgb
from samtune.errors import DataError
from samtune.types import ImageArray

BITS_PER_SAMPLE = 258  # tag of a TIFF


class ImageFacts(NamedTuple):
    """What a file of an image shows.

    Attributes:
        width, height: in pixels, EXIF orientation applied.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        content: SHA-256 of size and pixels.
        difference: 64-bit difference hash.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    content: str
    difference: int


def image_facts(paths: Sequence[Path]) -> list[ImageFacts | DataError]:
    """Returns the facts of image files; where one can't be read, the error that says why."""
    answers = recall("images-2", paths, _look)
    return [answer if isinstance(answer, DataError) else ImageFacts(*answer) for answer in answers]


def difference_hash(image: ImageArray) -> int:
    """Returns the 64-bit difference hash of an (H, W, 3) uint8 image.

    The grey image is scaled to 9 x 8 with the area filter; a bit is the sign of a horizontal step.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    levels = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def _look(path: Path) -> ImageFacts:
    with open_picture(path) as picture:
        pixels = to_rgb(picture)
        height, width = pixels.shape[:2]
        oddities = _deep(path, picture)
        if (pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():  # hardly any gets past a row
            oddities.append("constant image, every pixel has the same colour")
        orientation = int(picture.getexif().get(ORIENTATION, 1))
    content = hashlib.sha256(f"{pixels.shape}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(width, height, orientation, oddities, content.hexdigest(), difference_hash(pixels))


def _deep(path: Path, picture: Image.Image) -> list[str]:
    """Returns a line on a picture of 16 bits per channel: how it is read, and what to do where that does not fit."""
    if (depth := grey_depth(picture)) is not None:
        rule = f"16-bit image, scaled to 8 bits as one of {depth} bits (0 to {2**depth - 1})"
        return [f"{rule}; save it with 8 bits for another scale"]
    if picture.mode.startswith("RGB") and _bits(path, picture) == 16:
        return ["16-bit colour image, the upper 8 bits are read; save it with 8 bits if that is too dark"]
    return []


def _bits(path: Path, picture: Image.Image) -> int:
    """Returns the bits per channel of the file of a decoded picture, which Pillow makes 8 of for colours."""
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # of the header, which comes first
    tags = getattr(picture, "tag_v2", {})
    return int(max(tags.get(BITS_PER_SAMPLE, (8,))))


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


def near_across(parts: Sequence[str], images: Sequence[ImageFacts], *, most: int) -> tuple[int, list[tuple[int, int]]]:
    """Counts the near-duplicates in different parts, without the identical ones.

    Returns the number, and the first `most` of them as indices (i, j), i < j.
    """
    hashes = np.array([facts.difference for facts in images], dtype=np.uint64)
    part, content = (np.unique(keys, return_inverse=True)[1] for keys in (parts, [facts.content for facts in images]))
    count = 0
    first: list[tuple[int, int]] = []
    for i in range(len(hashes)):
        rest = slice(i + 1, None)
        near = np.bitwise_count(hashes[rest] ^ hashes[i]) <= MAX_DISTANCE
        found = np.flatnonzero(near & (part[rest] != part[i]) & (content[rest] != content[i]))
        count += len(found)
        first += [(i, i + 1 + int(j)) for j in found[: most - len(first)]]
    return count, first


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
