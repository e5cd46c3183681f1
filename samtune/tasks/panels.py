"""How do pictures of a few images become one row of panels, and which images are shown?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from samtune.base.disk import write_bytes
from samtune.base.paths import safe_name
from samtune.types import ImageArray

PANEL = (256, 384)
"""Each picture is scaled to fit into this (height, width)."""
INK, PAPER = (235, 235, 240), (24, 24, 27)
_CAPTION_HEIGHT, _MIN_WIDTH, _GAP = 26, 150, 4


def pick_cases(values: Mapping[str, float], *, each: int = 3) -> list[tuple[str, str]]:
    """Returns (label, name) of the "best", "median" and "worst" images, by falling value in each kind.

    Images with NaN are left out. Where there are few, a kind has fewer than `each`; no image comes twice.
    """
    names = sorted((name for name, value in values.items() if not math.isnan(value)), key=lambda n: (-values[n], n))
    each = min(each, max(1, len(names) // 3))
    best, worst = names[:each], names[each:][-each:]
    between = names[each : max(each, len(names) - each)]
    start = (len(between) - each + 1) // 2 if len(between) > each else 0
    kinds = {"best": best, "median": between[start : start + each], "worst": worst}
    return [(label, name) for label, chosen in kinds.items() for name in chosen]


def save_panels(folder: Path, panels: Iterable[tuple[str, ImageArray]]) -> list[Path]:
    """Writes one PNG per (name, (H, W, 3) RGB) and returns the files, in order.

    A lazy iterable keeps one picture in memory at a time. The files have the `safe_name` of theirs.
    """
    paths = []
    for name, panel in panels:
        paths.append(folder / f"{safe_name(name)}.png")
        write_bytes(paths[-1], cv2.imencode(".png", panel[..., ::-1])[1].tobytes())
    return paths


def panel_scale(image: ImageArray) -> float:
    """Returns by how much an image is scaled to fit into a panel."""
    return min(PANEL[0] / image.shape[0], PANEL[1] / image.shape[1])


def scaled(picture: np.ndarray, scale: float) -> np.ndarray:
    """Resizes an image by area, a mask by majority."""
    width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    if picture.dtype != np.bool_:
        return cv2.resize(picture, (width, height), interpolation=method)
    return cv2.resize(picture.astype(np.float32), (width, height), interpolation=method) > 0.5


def side_by_side(panels: Sequence[ImageArray]) -> ImageArray:
    """Joins panels of one height, with gaps."""
    gap = np.full((panels[0].shape[0], _GAP, 3), PAPER, dtype=np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


def captioned(picture: ImageArray, *words: tuple[str, tuple[int, int, int]]) -> ImageArray:
    """Puts a line of coloured words on top of a picture, which is centred if it is narrower than the line."""
    height, width = picture.shape[:2]
    panel = np.full((height + _CAPTION_HEIGHT, max(width, _MIN_WIDTH), 3), PAPER, dtype=np.uint8)
    left = (panel.shape[1] - width) // 2
    panel[_CAPTION_HEIGHT:, left : left + width] = picture
    x = 4
    for word, colour in words:
        cv2.putText(panel, word, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] + 10
    return panel
