"""How do polygons and run lengths become masks, and masks polygons and run lengths? COCO's rule, for all formats.

A pixel belongs to a polygon that holds its centre, by the even-odd rule, to a quarter of a pixel; pixel x covers x to
x + 1. Several polygons of one object are united. `outlines` and `bridged` are the way back: what they return is drawn
as the same mask again.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from samtune.types import MaskArray, Size

Points = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""(N, 2) corners of a closed polygon, XY in pixels, the first one not repeated."""
Rle = dict[str, Any]
"""COCO's run lengths: {"size": [H, W], "counts": packed text, or numbers by columns that begin with background}."""
Region = tuple[Points, ...] | Rle
_DIGITS = 4  # of coordinates in pixels: shares and percents come back within, so that they are drawn alike
_FARTHEST, _LONGEST = 100_000, 5_000_000  # pixels; an outline is walked in fifths of pixels, all in memory
_CORNERS = 72  # of the polygon that stands for an ellipse


def polygon(numbers: Any) -> Points:
    """Returns a polygon from its corners [[x, y], ...] or [x, y, x, y, ...]; a `ValueError` where they are none."""
    values = np.asarray(numbers, dtype=np.float64)
    if values.ndim == 1 and len(values) % 2:
        raise ValueError(f"a polygon of {len(values)} numbers; x and y in turn are needed")
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 2):
        raise ValueError(f"a polygon of numbers in the shape {list(values.shape)}; x and y in turn are needed")
    points = values.reshape(-1, 2)
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} point(s), which has no area; 3 or more are needed")
    if not np.isfinite(points).all():
        raise ValueError("a polygon with a coordinate that is no number")
    if np.abs(points).max() > _FARTHEST:
        raise ValueError(f"a polygon with a coordinate of {np.abs(points).max():g} pixels; {_FARTHEST:,} is the most")
    if (length := np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()) > _LONGEST:
        raise ValueError(f"a polygon whose outline is {length:,.0f} pixels long; {_LONGEST:,} are the most")
    return points


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Returns the polygon of a box; its corners may come in any order."""
    return polygon([[left, top], [right, top], [right, bottom], [left, bottom]])


def turned(points: Points, degrees: float, around: Sequence[float] | None = None) -> Points:
    """Returns a polygon that is turned clockwise around a point, or around the mean of its corners."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre = points.mean(axis=0) if around is None else np.asarray(around, dtype=np.float64)
    return polygon((points - centre) @ [[cosine, sine], [-sine, cosine]] + centre)


def ellipse(x: float, y: float, across: float, down: float, degrees: float = 0.0) -> Points:
    """Returns the polygon of an ellipse around (x, y) by its half axes, turned clockwise."""
    angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
    level = polygon(np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1))
    return turned(level, degrees, (x, y))


def run_lengths(shape: Any, height: int, width: int) -> Rle:
    """Returns run lengths as they are; a `ValueError` where they are of another size, or don't fill the picture.

    pycocotools fills what they leave with whatever is in memory.
    """
    size, counts = list(shape["size"]), shape["counts"]
    if size != [height, width]:
        raise ValueError(f"run lengths of size {size}, but the picture has {[height, width]} (height, width)")
    if not isinstance(counts, list | str):
        raise ValueError("run lengths whose counts are neither numbers nor text")
    numbers = _unpacked(counts) if isinstance(counts, str) else counts
    if not all(type(number) is int for number in numbers):
        raise ValueError("run lengths that are no whole numbers")
    if min(numbers, default=0) < 0 or sum(numbers) != height * width:
        raise ValueError(f"run lengths of {sum(numbers)} pixels, but the picture has {height * width}")
    return {"size": [height, width], "counts": counts}


def draw(region: Region, height: int, width: int) -> MaskArray:
    """Draws a region as an (H, W) bool mask."""
    from pycocotools import mask as coco

    if isinstance(region, dict):
        rle = coco.frPyObjects(region, height, width) if isinstance(region["counts"], list) else region
    else:
        flat = [points.ravel().round(_DIGITS).tolist() for points in region]
        rle = coco.merge(coco.frPyObjects(flat, height, width))
    mask: MaskArray = coco.decode(rle).astype(bool)
    return mask


def encode_rle(
    mask: MaskArray, place: tuple[slice, slice] | None = None, size: Size | None = None
) -> tuple[Rle, int, list[float]]:
    """Returns COCO's `{"size": [H, W], "counts": str}` of an (H, W) bool mask, its area in pixels, and its box.

    The box is x, y, width, height, all 0 for an empty mask.

    Args:
        place, size: rows and columns that the mask fills in a picture of this (H, W); None for a mask of it all. Of
            thousands of small objects, the pictures are not made.
    """
    from pycocotools import mask as coco

    if place is None or size is None:
        rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    else:
        rows, columns = place
        strip = np.zeros((columns.stop - columns.start, size[0]), dtype=np.int8)  # column by column, as runs go
        strip[:, rows] = mask.T
        start = columns.start * size[0]
        ends = np.flatnonzero(np.diff(strip.ravel(), prepend=0, append=0)) + start
        runs = np.diff(ends, prepend=0, append=size[0] * size[1]).tolist()
        rle = coco.frPyObjects({"size": list(size), "counts": runs if runs[-1] else runs[:-1]}, *size)
    counts = rle["counts"].decode("ascii")
    return {"size": list(rle["size"]), "counts": counts}, int(coco.area(rle)), coco.toBbox(rle).tolist()


def _unpacked(text: str) -> list[int]:
    """Returns the numbers of packed run lengths: from the fourth on, what each adds to the last but one.

    A letter holds five bits, the lowest first, and whether more follow; the highest bit of the last one is the sign.
    """
    numbers, value, shift = list[int](), 0, 0
    for bits in (ord(letter) - 48 for letter in text):
        if not 0 <= bits < 64:
            raise ValueError("packed run lengths with a letter that is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << 1 << (shift - 5)
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("packed run lengths that end too early")
    return numbers


def unpack_png(text: str, band: Literal["L", "A"]) -> np.ndarray:
    """Returns the grey values, or the alpha, of a PNG in base64: (h, w) uint8.

    Raises:
        ValueError: no such PNG.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as picture:
            return np.array(picture.convert("L") if band == "L" else picture.convert("RGBA").getchannel("A"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a mask that is no PNG in base64 ({error})") from error


def place_crop(crop: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """Returns the run lengths of an (h, w) mask that stands at (left, top) of a picture.

    Raises:
        ValueError: it reaches beyond the picture.
    """
    if left < 0 or top < 0 or left + crop.shape[1] > width or top + crop.shape[0] > height:
        found = f"{crop.shape[1]} x {crop.shape[0]} pixels at ({left}, {top})"
        raise ValueError(f"a mask of {found}, which is beyond the picture of {width} x {height}")
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return encode_rle(mask)[0]


def crop_of(mask: MaskArray) -> tuple[MaskArray, int, int]:
    """Returns the smallest part of a mask that has all of it, with its left and top; all of an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask, 0, 0
    top, left = int(rows[0]), int(columns[0])
    return mask[top : rows[-1] + 1, left : columns[-1] + 1], left, top


def outlines(mask: MaskArray) -> list[list[Points]]:
    """Returns the pieces of an (H, W) mask, each a list of closed rings: its outline, then its holes.

    An outline runs halfway between the centres of pixels that are in and out, so that the pixels whose centres it holds
    are those of the mask.
    """
    from contourpy import FillType, LineType, contour_generator

    crop, left, top = crop_of(mask)  # a small object in a large picture
    field = np.pad(crop, 1).astype(np.float64)
    xs, ys = (np.arange(-1, side + 1) + 0.5 + start for side, start in zip(crop.shape[::-1], (left, top), strict=True))
    lines = contour_generator(xs, ys, field, fill_type=FillType.OuterOffset, line_type=LineType.Separate)
    pieces = zip(*lines.filled(0.5, 2.0), strict=True)
    return [[points[start:stop] for start, stop in pairwise(offsets)] for points, offsets in pieces]


def bridged(rings: Sequence[Points]) -> Points:
    """Joins an outline and its holes to one polygon, by a line there and back between the nearest corners.

    By the even-odd rule the two ways cancel, so that the polygon holds the same pixels.
    """
    joined = rings[0][:-1]
    for ring in rings[1:]:
        hole = ring[:-1]
        distances = ((joined[:, None] - hole[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        joined = np.concatenate([joined[: here + 1], hole[there:], hole[: there + 1], joined[here:]])
    return joined
