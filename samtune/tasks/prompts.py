"""Prompts: as a user gives them, and as they are drawn from a mask.

A user's prompts are in pixels of the original frame. Drawn coordinates are pixel indices, XY, in the frame of the mask;
a box is XYXY and includes its last row and column, as in Segment Anything's training: its encoder adds the half pixel.
"""

from typing import cast

import cv2
import numpy as np
from numpy.typing import ArrayLike

from samtune.errors import ConfigError
from samtune.types import MaskArray, ObjectMap, Size

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
MIN_AREA = 16  # pixels; smaller specks are compression noise of hand-drawn masks
JITTER = 0.1  # standard deviation, as a part of the box's side
MAX_JITTER = 20 / 1024  # as a part of the picture's longer side


class PromptError(ConfigError):
    """A prompt that can't be used: `field` is "box", "points" or "labels"."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def checked_boxes(boxes_xyxy: ArrayLike | None) -> Floats | None:
    """Checks (4,) or (N, 4) boxes, as far as that needs no image, and returns them as (N, 4) float64; None stays None.

    Raises:
        PromptError: a wrong shape, a number that is not finite, or an inverted box.
    """
    if boxes_xyxy is None:
        return None
    boxes = np.atleast_2d(_numbers("box", boxes_xyxy))
    if boxes.ndim != 2 or not len(boxes) or boxes.shape[1] != 4:
        raise PromptError("box", f"a box is 4 numbers x0, y0, x1, y1; these have the shape {boxes.shape}.")
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        if x1 <= x0 or y1 <= y0:
            wrong = f"box {index} is inverted or empty ({x0:g}, {y0:g}, {x1:g}, {y1:g})."
            raise PromptError("box", f"{wrong} Give x0, y0 (upper left), then x1, y1 (lower right).")
    return boxes


def clip_boxes(boxes: Floats, size: Size) -> Floats:
    """Returns (N, 4) boxes without what is outside an image of `size` (H, W); a `PromptError` if all of a box is."""
    height, width = size
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float64))
    for index, (x0, y0, x1, y1) in enumerate(clipped):
        if x1 <= x0 or y1 <= y0:
            raise PromptError("box", f"box {index} is outside the image of {width} x {height} pixels.")
    return clipped


def checked_points(points_xy: ArrayLike | None, labels: ArrayLike | None) -> tuple[Floats | None, np.ndarray | None]:
    """Checks (P, 2) points and (P,) labels of 0 and 1 (None: all 1), as far as that needs no image.

    Returns:
        (P, 2) float64 and (P,) int64, or two None.

    Raises:
        PromptError: wrong shapes, numbers that are not finite, unknown labels.
    """
    if points_xy is None:
        if labels is not None:
            raise PromptError("labels", "labels were given without points. Give one point per label.")
        return None, None
    points = _numbers("points", points_xy)
    if points.ndim != 2 or not len(points) or points.shape[1] != 2:
        raise PromptError("points", f"points are pairs of x and y; these have the shape {points.shape}.")
    if labels is None:
        return points, np.ones(len(points), dtype=np.int64)
    signs = _numbers("labels", labels)
    if signs.shape != (len(points),):
        raise PromptError("labels", f"{len(points)} points need as many labels; these have the shape {signs.shape}.")
    for index, sign in enumerate(signs):
        if sign not in (0, 1):
            raise PromptError("labels", f"label {index} is {sign:g}; 1 is on the object, 0 is off it.")
    return points, signs.astype(np.int64)


def check_inside(points: Floats, size: Size) -> None:
    """Raises a `PromptError` for the first of (P, 2) XY points that lies outside an image of `size` (H, W)."""
    height, width = size
    for index, (x, y) in enumerate(points):
        if not (0 <= x < width and 0 <= y < height):
            where = f"outside the image of {width} x {height} pixels"
            raise PromptError("points", f"point {index} ({x:g}, {y:g}) is {where}.")


def components(mask: MaskArray) -> list[MaskArray]:
    """Splits an (H, W) bool mask into its 8-connected components, each (H, W) bool, roughly from top to bottom.

    Components under 16 pixels are left out, but for the largest when all are; an empty mask has none.
    """
    labels, large = _labelled(mask)
    return [cast(MaskArray, labels == label) for label in large]


def numbered_components(mask: MaskArray) -> ObjectMap:
    """Returns the `components` of a mask as a map: (H, W) int32, of each pixel the number of its component, or 0."""
    labels, large = _labelled(mask)
    return np.where(np.isin(labels, large), labels, 0).astype(np.int32)


def count_components(mask: MaskArray) -> int:
    """Returns the number of `components`, without making them: a picture of cells has hundreds."""
    return len(_labelled(mask)[1])


def _labelled(mask: MaskArray) -> tuple[np.ndarray, list[int]]:
    """Returns (H, W) labels of components, and which of them are large enough to count."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA].tolist()
    least = min(MIN_AREA, max(areas, default=0))
    return labels, [label for label, area in enumerate(areas, 1) if area >= least]


def box_of(mask: MaskArray, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns the tight box of a mask, (4,) float32 XYXY in pixels of its frame, jittered when a generator is given.

    Jitter follows Segment Anything's training: each side moves by a normal deviate of 10 % of the box's width or
    height, at most 20 / 1024 of the longer side of the picture; the box stays in the picture.

    Args:
        mask: (H, W) bool, not empty.
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
    """Returns a point inside a mask, (2,) float32 XY in pixels of its frame.

    Args:
        mask: (H, W) bool, not empty.
        rng: chooses a point off the edge; None takes the pixel farthest from the background, first in reading order.
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


def _numbers(field: str, values: ArrayLike) -> Floats:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as err:
        raise PromptError(field, f"{field}: expected numbers, as many in each row.") from err
    if not np.isfinite(numbers).all():
        raise PromptError(field, f"{field}: NaN and infinity are no coordinates or labels.")
    return numbers
