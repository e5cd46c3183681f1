"""What does the file of a map of objects show, and how do objects that share pixels become one map?

A map is a picture of whole numbers: 0 is no object, every other value is one object, in one piece or several. So no
pixel has two objects. Objects that touch are told apart by their values; of objects that overlap, or lie within others,
the smaller one has the pixels that both cover.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from samtune.data.cache import recall
from samtune.data.pictures import ORIENTATION, open_picture
from samtune.errors import DataError
from samtune.metrics.instances import LIMITS
from samtune.types import MaskArray, ObjectMap, Size

Part = tuple[tuple[slice, slice], MaskArray]
"""Rows and columns of a picture, and the (h, w) mask there."""
WHOLE = (slice(None), slice(None))

logger = logging.getLogger(__name__)

SPECK = 4  # pixels; a smaller object is hardly one
_INSTEAD = "save the number of each pixel's object, 0 for none, in one grey channel of 8 or 16 bits, as PNG or TIFF"


class ObjectFacts(NamedTuple):
    """What a file of a map of objects shows.

    Attributes:
        width: in pixels, EXIF orientation applied, as `height`.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        objects: how many there are.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    objects: int


def read_objects(path: Path) -> ObjectMap:
    """Decodes the (H, W) int32 map of a file, EXIF orientation applied; see `_numbers_of`."""
    with open_picture(path) as picture:
        return _numbers_of(picture)


def object_facts(paths: Sequence[Path]) -> list[ObjectFacts | DataError]:
    """Returns the facts of maps, remembered per file; where one can't be read, the error that says why."""
    answers = recall("objects-1", paths, _look)
    return [answer if isinstance(answer, DataError) else ObjectFacts(*answer) for answer in answers]


def paint(masks: Iterable[Part], size: Size) -> ObjectMap:
    """Draws masks as one map, each with its place from 1 and over those before it: give the largest first.

    So a pixel of several is the smallest's. What is wholly under others is not in the map; see `renumbered`.
    """
    labels = np.zeros(size, dtype=np.int32)
    for number, (place, mask) in enumerate(masks, start=1):
        labels[place][mask] = number
    return labels


def cut_out(mask: MaskArray) -> Part:
    """Returns the part of an (H, W) mask that has all of its object: thousands of whole ones take too much memory."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (slice(0, 0), slice(0, 0)), mask[:0, :0]
    place = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return place, mask[place].copy()


def paint_smaller_over(
    masks: Sequence[Callable[[], MaskArray]], areas: Sequence[int], size: Size, *, names: Sequence[str], of: Path
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Draws the masks of an image's objects as one map, smaller ones over larger ones, and says where they overlap.

    Args:
        masks: each makes an (H, W) mask of `size`: thousands of a large picture take more memory than there is.
        areas: their pixels.
        names: what errors call them; `of` is the image.

    Returns:
        (H, W) uint16, numbered from the largest.

    Raises:
        DataError: a line for each object that covers no pixel, or lies wholly under smaller ones.
    """
    order = np.argsort(-np.asarray(areas, dtype=np.int64), kind="stable").tolist()
    labels = paint(((WHOLE, masks[place]()) for place in order), size)
    seen = set(np.unique(labels).tolist())
    lines = []
    for number, place in enumerate(order, start=1):
        if number not in seen:
            why = "lies wholly under smaller ones" if areas[place] else "covers no pixel"
            lines.append(f"{names[place]} {why}; take it out, or mend it")
    if lines:
        raise DataError("\n".join(lines))
    if shared := sum(areas) - int(np.count_nonzero(labels)):
        logger.warning("%s: objects overlap in %d pixels; the smaller one has them", of, shared)
    return labels.astype(np.uint16)


def renumbered(labels: ObjectMap) -> tuple[ObjectMap, np.ndarray]:
    """Returns a map whose numbers are 1 to n in the order of theirs, and the (n,) numbers that they had."""
    numbers, places = np.unique(np.concatenate([[0], labels.ravel()]), return_inverse=True)
    numbered: Any = places[1:].reshape(labels.shape).astype(np.int32)
    return numbered, numbers[1:]


def _numbers_of(picture: Image.Image) -> ObjectMap:
    """Returns the numbers of a picture: indices of a palette, or grey levels.

    Raises:
        DataError: colours, numbers beyond 16 bits, fractions, or a JPEG, whose values are not exact.
    """
    if picture.format in ("JPEG", "MPO"):
        raise DataError(f"a JPEG, whose values are not exact: no map of objects; {_INSTEAD}")
    if picture.mode not in ("P", "L", "1") and not picture.mode.startswith("I"):
        raise DataError(f"pixels of mode {picture.mode!r} are no map of objects; {_INSTEAD}")
    values = np.array(ImageOps.exif_transpose(picture)).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"values from {values.min()} to {values.max()} are beyond 16 bits; {_INSTEAD}")
    return values.astype(np.int32)


def _look(path: Path) -> ObjectFacts:
    with open_picture(path) as picture:
        labels = _numbers_of(picture)
        orientation = int(picture.getexif().get(ORIENTATION, 1))
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    objects = int(np.count_nonzero(counts))
    return ObjectFacts(labels.shape[1], labels.shape[0], orientation, list(_oddities(labels, counts, objects)), objects)


def _oddities(labels: ObjectMap, counts: np.ndarray, objects: int) -> Iterable[str]:
    if not objects:
        yield "no object, every pixel is 0"
    specks = np.flatnonzero((counts > 0) & (counts < SPECK))
    if len(specks):
        yield f"{len(specks)} object(s) of fewer than {SPECK} pixels, such as value {specks[0]}; take specks out"
    if objects > LIMITS[-1]:
        yield f"{objects:,} objects; AP counts the {LIMITS[-1]:,} of an image that are found with the highest scores"
    if objects == 1:
        pieces = cv2.connectedComponents((labels > 0).astype(np.uint8), connectivity=8)[0] - 1
        if pieces > 1:
            value = int(np.flatnonzero(counts)[0])
            yield f"one object, value {value}, in {pieces} pieces; give each object a value of its own if they are many"
