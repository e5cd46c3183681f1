"""What one decoding of an image file shows: all that checks and cuts need to know of it, remembered per file.

A first start decodes every image once, several at a time; a later one decodes those that are new or changed.
Near-duplicates, such as frames of one video, must not sit on both sides of a split: their difference hashes differ in
at most 4 of 64 bits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from samtune.config.pixels import RGB
from samtune.data.cache import recall
from samtune.data.channels.read import Stored, misfit, read_stored
from samtune.data.pictures import LARGEST_PIXELS, MAX_PIXELS, depth_of, too_large
from samtune.errors import DataError
from samtune.types import ImageArray


class ImageFacts(NamedTuple):
    """What a file of an image shows.

    Attributes:
        width, height: in pixels, EXIF orientation applied.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        content: SHA-256 of size and pixels.
        difference: 64-bit difference hash.
        channels: values per pixel in the file, of which the last is transparency if `alpha` says so.
        pages: of the file; each is a channel where there are several.
        levels: of values beyond 8 bits the smallest, the largest, and those above 0.5 and 99.5 % of the others; else
            None.
        scaled: how such a picture is read without a range; None of one that needs it.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    content: str
    difference: int
    channels: int = 3
    alpha: bool = False
    pages: int = 1
    levels: list[float] | None = None
    scaled: str | None = None


def image_facts(paths: Sequence[Path], *, most: int = MAX_PIXELS) -> list[ImageFacts | DataError]:
    """Returns the facts of image files of at most so many pixels; where one can't be read, the error that says why."""
    answers = recall("images-3", paths, partial(_look, most=most))
    found = [answer if isinstance(answer, DataError) else ImageFacts(*answer) for answer in answers]
    return [_limited(path, facts, most) for path, facts in zip(paths, found, strict=True)]


def rgb_facts(paths: Sequence[Path]) -> list[ImageFacts | DataError]:
    """Returns the facts of image files that are read as RGB of 8 bits; where one can't be, the error that says why."""
    pairs = zip(paths, image_facts(paths), strict=True)
    return [facts if isinstance(facts, DataError) else _as_rgb(path, facts) for path, facts in pairs]


def _as_rgb(path: Path, facts: ImageFacts) -> ImageFacts | DataError:
    if problem := misfit(facts.channels, RGB.channels, alpha=facts.alpha, pages=facts.pages):
        return DataError(f"{path}: {problem}")
    if facts.levels is None:
        return facts
    if facts.scaled is None:
        return DataError(f"{path}: values of more than 16 bits, or floating-point ones; save it with 8 or 16 bits")
    return facts._replace(oddities=[*facts.oddities, facts.scaled])


def difference_hash(image: ImageArray) -> int:
    """Returns the 64-bit difference hash of an (H, W, 3) uint8 image.

    The grey image is scaled to 9 x 8 with the area filter; a bit is the sign of a horizontal step.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    levels = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def _limited(path: Path, facts: ImageFacts | DataError, most: int) -> ImageFacts | DataError:
    """Returns the error of a picture that was remembered when more pixels were allowed."""
    problem = None if isinstance(facts, DataError) else too_large(facts.width, facts.height, most)
    return facts if problem is None else DataError(f"{path}: {problem}")


def _look(path: Path, *, most: int) -> ImageFacts:
    stored = read_stored(path, most=most)
    values = stored.values
    height, width = values.shape[:2]
    colours = values.shape[2] - stored.alpha
    oddities = []
    if (values[0] == values[0, 0]).all() and (values == values[0, 0]).all():  # hardly any gets past a row
        oddities.append("constant image, every pixel has the same colour")
    if not stored.deep and colours in (1, 3):  # grey and RGB of the same pixels are the same picture
        values = np.repeat(values[:, :, :1], 3, axis=2) if colours == 1 else values[:, :, :3]
    levels = [*map(float, (values.min(), values.max(), *np.percentile(values, (0.5, 99.5))))] if stored.deep else None
    content = hashlib.sha256(f"{values.shape}".encode())
    content.update(np.ascontiguousarray(values).data)
    return ImageFacts(
        width, height, stored.orientation, oddities, content.hexdigest(), difference_hash(_grey(values, levels)),
        stored.values.shape[2], stored.alpha, stored.pages, levels, _scaled(stored, levels),
    )  # fmt: skip


def _grey(values: np.ndarray, levels: list[float] | None) -> ImageArray:
    """Returns any values as (H, W, 3) uint8 to compare pictures by: RGB, or the mean of other channels, in 8 bits."""
    if levels is not None:
        low, high = levels[:2]
        values = np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    return np.repeat(np.rint(values.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)


def _scaled(stored: Stored, levels: list[float] | None) -> str | None:
    """Returns a line on a picture of 16 bits per channel: how it is read without a range; None of any other."""
    if levels is None or stored.values.dtype.kind == "f" or not 0 <= levels[0] <= levels[1] <= 65535:
        return None
    if stored.values.shape[2] - stored.alpha == 3:
        return "16-bit colour image, the upper 8 bits are read; save it with 8 bits if that is too dark"
    depth = depth_of(levels[1])
    rule = f"16-bit image, scaled to 8 bits as one of {depth} bits (0 to {2**depth - 1})"
    return f"{rule}; save it with 8 bits for another scale"


MAX_DISTANCE = 4  # of 64 bits


def hash_images(paths: Sequence[Path]) -> list[ImageFacts]:
    """Returns `image_facts` of any size; the `DataError` of an image that can't be read is raised."""
    found = []
    for facts in image_facts(paths, most=LARGEST_PIXELS):
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
