"""Which pictures does every model know how to segment? Generated ones: objects of one colour on an uneven ground.

They are drawn by a fixed seed, the same on every machine, and are in nobody's data: a model that answers prompts on
them worse than before it was tuned has lost what it was pretrained for.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch

from samtune.data.frames import resize
from samtune.types import Batch, ObjectMap, PixelArray

SCENES = 16
SEED = 20261129
SIDE = 256  # pixels, as they are drawn
_OBJECTS = (2, 6)  # of a scene, from (included) to (excluded)
_WAVES = 4  # of an outline around a circle


def scene_batches(count: int, side: int, channels: int) -> Iterator[Batch]:
    """Yields scenes as batches of one, always the same for a side and a number of channels.

    Args:
        count: at most `SCENES`.
        side: S in pixels of the input frame, which a scene fills.
    """
    for number in range(min(count, SCENES)):
        picture, drawn = _scene(number, channels)
        labels: Any = resize(drawn, (side, side))
        pixels = torch.from_numpy(np.ascontiguousarray(resize(picture, (side, side)).transpose(2, 0, 1)))
        masks = torch.from_numpy(labels)[None, None]
        yield Batch(pixels[None], masks, ((side, side),), (f"scene{number}",), (labels,))


@cache  # a run measures twice
def _scene(number: int, channels: int) -> tuple[PixelArray, ObjectMap]:
    """Draws a scene: (256, 256, C) uint8, and the map of its objects, which may cover one another in part."""
    rng, side = np.random.default_rng((SEED, number)), SIDE
    values: Any = _uneven(rng, side, channels, contrast=25.0) + rng.uniform(60, 195, channels)
    labels = np.zeros((side, side), dtype=np.int32)
    for number in range(1, int(rng.integers(*_OBJECTS)) + 1):
        inside = _outlined(rng, side)
        away = rng.choice([-1.0, 1.0], channels) * rng.uniform(45, 90, channels)
        values[inside] = (_uneven(rng, side, channels, contrast=12.0) + values.mean(axis=(0, 1)) + away)[inside]
        labels[inside] = number
    values = cv2.GaussianBlur(values, (3, 3), 0).reshape(side, side, channels)  # the soft edges of a lens
    values = np.clip(values + rng.normal(0, 4, values.shape), 0, 255)
    picture: Any = values.astype(np.uint8)
    return picture, labels


def _uneven(rng: np.random.Generator, side: int, channels: int, *, contrast: float) -> np.ndarray:
    """Returns (S, S, C) float64 of mean 0: light that falls unevenly, and a finer grain."""
    total = np.zeros((side, side, channels))
    for cells, share in ((3, 1.0), (12, 0.4), (48, 0.2)):
        coarse = rng.normal(0, contrast * share, (cells, cells, channels))
        total += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, channels)
    return total


def _outlined(rng: np.random.Generator, side: int) -> np.ndarray:
    """Returns (S, S) bool, the inside of a wavy outline around a place in the picture."""
    centre, radius = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.07, 0.2) * side
    rows, columns = np.mgrid[:side, :side] - centre[:, None, None]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    along, across = (np.cos(turn) * columns + np.sin(turn) * rows, np.cos(turn) * rows - np.sin(turn) * columns)
    direction = np.arctan2(across, along)
    waves = zip(range(2, 2 + _WAVES), rng.normal(0, 0.08, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES), strict=True)
    outline = radius * (1 + sum(size * np.cos(times * direction + start) for times, size, start in waves))
    inside: np.ndarray = np.hypot(along, across / stretch) < outline
    return inside
