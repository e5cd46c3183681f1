"""How good are answers that need no model? Otsu's threshold, foreground everywhere, the mean mask: what to beat."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import cv2
import numpy as np

from samtune.metrics.overlap import dice
from samtune.types import Batch, MaskArray, Size

TRIVIAL = {
    "otsu_bright": "Otsu's threshold of brightness with what is bright as foreground",
    "otsu_dark": "Otsu's threshold of brightness with what is dark as foreground",
    "all_foreground": "foreground everywhere",
    "mean_mask": "the mean mask of train, the same for every image",
    "whole_box": "the whole box",
    "otsu_click": "Otsu's threshold of brightness with what is connected to the click as foreground",
    "watershed_bright": "Otsu's threshold of brightness and a watershed of the distance to its edge, objects bright",
    "watershed_dark": "Otsu's threshold of brightness and a watershed of the distance to its edge, objects dark",
    "most_frequent": "the most frequent class of train, the same for every image",
}
"""Key -> a few words."""

SIDE = 64  # of the mean mask
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)

GreyArray = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Mean = np.ndarray[Any, np.dtype[np.bool_]]


class TrivialMasks:
    """Answers every target of a batch without a model.

    Attributes:
        dice: key of `TRIVIAL` -> the Dice of each target so far, at its original size; NaN without an object.
    """

    def __init__(self, mean: Mean | None) -> None:
        """Takes what `mean_mask` returned; it answers where there is no prompt."""
        self.dice: dict[str, list[float]] = {}
        self._mean = mean

    def add(self, batch: Batch) -> None:
        """Answers the targets of a batch with truths, on the CPU."""
        boxes, points = (batch.prompts.boxes_input, batch.prompts.points_input) if batch.prompts else (None, None)
        for index, (truth, (height, width)) in enumerate(zip(batch.truths, batch.sizes_input, strict=True)):
            picture = grey(batch.images[index, :, :height, :width].permute(1, 2, 0).numpy())
            bright = otsu(picture)
            if boxes is not None:
                answers = _in_box(picture, boxes[index].tolist())
            elif points is not None:
                answers = {"otsu_click": _at_click(bright, points[index, 0].tolist())}
            else:
                answers = {"otsu_bright": bright, "otsu_dark": ~bright, "all_foreground": np.ones_like(bright)}
                answers |= {} if self._mean is None else {"mean_mask": self._mean}
            for key, answer in answers.items():
                value = dice(_scaled(answer, truth.shape), truth) if truth.any() else math.nan
                self.dice.setdefault(key, []).append(value)


def mean_mask(masks: Iterable[MaskArray]) -> Mean | None:
    """Returns the (64, 64) part of a picture that is foreground in enough masks, whatever their sizes; None of none.

    Masks without an object don't count, as in what it is compared with.
    Of the shares of masks that can be asked for, the one whose answer has the best Dice on these masks is taken.
    """
    shown = (mask.astype(np.float32) for mask in masks if mask.any())
    areas = [cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for mask in shown]
    if not areas:
        return None
    mean, truths = np.mean(areas, axis=0), np.array(areas) > 0.5
    answers: list[Mean] = [mean >= level for level in LEVELS]
    return max(answers, key=lambda answer: float(np.mean([dice(answer, truth) for truth in truths])))


def most_frequent(labels: Sequence[int], train: Sequence[int]) -> list[float]:
    """Returns for each of `labels` whether it is the most frequent one of `train`: 1 or 0."""
    frequent = int(np.bincount(train).argmax())
    return [float(label == frequent) for label in labels]


def grey(picture: np.ndarray) -> GreyArray:
    """Returns the (h, w) grey values of an (h, w, C) picture: of RGB as people see them, else the mean of channels."""
    if picture.dtype != np.uint8:
        picture = np.rint(picture).astype(np.uint8)
    if picture.shape[2] == 3:
        return cast(GreyArray, cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))
    return cast(GreyArray, np.rint(picture.mean(axis=2)).astype(np.uint8))


def otsu(values: GreyArray) -> MaskArray:
    """Returns what is brighter than the threshold that parts the grey values best (Otsu 1979)."""
    return cast(MaskArray, cv2.threshold(values, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] > 0)


def _in_box(picture: GreyArray, box: Sequence[float]) -> dict[str, MaskArray]:
    """Returns the answers inside an XYXY box, whose last row and column belong to it."""
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    inside = np.s_[y0 : y1 + 1, x0 : x1 + 1]
    bright = otsu(cast(GreyArray, picture[inside]))
    answers = {"whole_box": np.ones_like(bright), "otsu_bright": bright, "otsu_dark": ~bright}
    placed = {}
    for key, answer in answers.items():
        placed[key] = np.zeros(picture.shape[:2], dtype=np.bool_)
        placed[key][inside] = answer
    return placed


def _at_click(bright: MaskArray, point: Sequence[float]) -> MaskArray:
    """Returns what is as bright or dark as the XY point and connected to it."""
    x, y = (min(int(value), side - 1) for value, side in zip(point, bright.shape[::-1], strict=True))
    same = bright if bright[y, x] else ~bright
    _, labels = cv2.connectedComponents(same.astype(np.uint8), connectivity=8)
    return cast(MaskArray, labels == labels[y, x])


def _scaled(mask: np.ndarray, size: Size) -> MaskArray:
    nearest = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    return cast(MaskArray, nearest > 0)
