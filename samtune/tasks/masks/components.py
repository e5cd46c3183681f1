"""Prompts drawn from a mask: connected components, their boxes and points inside them.

Coordinates are pixel indices, XY, in the frame of the mask; a box is XYXY and includes its last row and
column. That is what Segment Anything was trained with (its prompt encoder adds the half pixel).
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from samtune.types import MaskArray

MIN_AREA = 16  # pixels; smaller specks are compression noise of hand-drawn masks
JITTER = 0.1  # standard deviation, as a part of the box's side
MAX_JITTER = 20 / 1024  # as a part of the picture's longer side


def components(mask: MaskArray) -> list[MaskArray]:
    """Splits a mask into its 8-connected components.

    Args:
        mask: (H, W) bool.

    Returns:
        One (H, W) bool per component, roughly from top to bottom. Components under 16 pixels are
        left out, but for the largest one when all are. Empty for an empty mask.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count <= 1:
        return []
    least = min(MIN_AREA, int(areas.max()))
    return [cast(MaskArray, labels == i + 1) for i, area in enumerate(areas) if area >= least]


def box_of(mask: MaskArray, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns the tight box of a mask, jittered when a generator is given.

    Jitter follows Segment Anything's training: each side moves by a normal deviate of 10 % of the box's width
    or height, at most 20 / 1024 of the longer side of the picture; the box stays in the picture.

    Args:
        mask: (H, W) bool, not empty.
        rng: source of the jitter, or None for the tight box.

    Returns:
        (4,) float32 XYXY in pixels of the mask's frame.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)
    if rng is None:
        return box
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    limit = MAX_JITTER * max(mask.shape)
    moved = box + np.clip(rng.normal(size=4) * JITTER * sides, -limit, limit)
    height, width = mask.shape
    moved = np.clip(moved, 0, np.array([width, height, width, height]) - 1)
    corners = np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])
    return np.concatenate(corners).astype(np.float32)


def point_in(mask: MaskArray, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns a point inside a mask: the deepest one, or a random one off the edge when a generator is given.

    Args:
        mask: (H, W) bool, not empty.
        rng: source of the choice, or None for the pixel farthest from the background (first in reading
            order).

    Returns:
        (2,) float32 XY in pixels of the mask's frame.
    """
    # The frame counts as background: a point on the border of the picture is not deep.
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deepest = float(depth.max())
    if rng is None:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    else:
        rows, columns = np.nonzero(depth >= min(2.0, deepest))
        chosen = rng.integers(len(rows))
        row, column = rows[chosen], columns[chosen]
    return np.array([column, row], dtype=np.float32)
