"""Where do the tiles of a picture lie, how much does each count in a pixel, and which part of it shows a prompt?"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samtune.types import Size, Tiles

CONTEXT = 1.25  # sides of an object that the part of a picture around it has at least
Floats = np.ndarray[Any, np.dtype[np.float32]]
Place = tuple[slice, slice]
"""Rows and columns of a part of a picture."""


def starts(length: int, tiles: Tiles) -> list[int]:
    """Returns the first pixel of each tile along a side of so many pixels: evenly spread, from border to border.

    Neighbours share at least `tiles.overlap` pixels. A side that is no longer than a tile has one, of its own length.
    """
    last = length - tiles.size
    if last <= 0:
        return [0]
    steps = math.ceil(last / (tiles.size - tiles.overlap))
    return [round(step * last / steps) for step in range(steps + 1)]


def weights(first: Sequence[int], length: int, tiles: Tiles) -> list[Floats]:
    """Returns how much each tile counts in the pixels along a side, (h,) each; in every pixel they add up to 1.

    A tile counts fully in its middle, and less over the last `tiles.overlap` pixels towards its edge, as a squared
    sine that is nearly 0 there, where a model sees least of what surrounds a pixel. Where a tile is alone, as at the
    border of a picture, it counts fully.
    """
    side = min(tiles.size, length)
    depth = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
    window = np.sin(np.pi / 2 * np.minimum(depth / tiles.overlap, 1)) ** 2
    total = np.zeros(length)
    for start in first:
        total[start : start + side] += window
    return [(window / total[start : start + side]).astype(np.float32) for start in first]


def place_of(box_xyxy: Sequence[float], size: Size, tiles: Tiles) -> Place:
    """Returns the part of an (H, W) picture that shows what is in a box best: one as large as a tile, around it.

    It is moved into the picture. A box that is nearly as long as a tile, or longer, gets a larger part, of `CONTEXT`
    times its longer side, which is scaled down into the input frame.
    """
    x0, y0, x1, y1 = box_xyxy
    side = max(tiles.size, math.ceil(CONTEXT * (max(x1 - x0, y1 - y0) + 1)))
    slices = []
    for low, high, length in ((y0, y1, size[0]), (x0, x1, size[1])):
        start = min(max(round((low + high + 1 - side) / 2), 0), max(length - side, 0))
        slices.append(slice(start, min(start + side, length)))
    return slices[0], slices[1]


def size_of(place: Place) -> Size:
    """Returns the (height, width) of a part of a picture."""
    return place[0].stop - place[0].start, place[1].stop - place[1].start


def into_part(box_xyxy: np.ndarray, place: Place, size_input: Size) -> np.ndarray:
    """Takes an XYXY box from the picture to the input frame of one of its parts, which has this size there."""
    height, width = size_of(place)
    corner = np.array([place[1].start, place[0].start] * 2)
    moved: np.ndarray = (box_xyxy - corner) * np.array([size_input[1] / width, size_input[0] / height] * 2)
    return moved
