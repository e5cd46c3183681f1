"""The metrics by name. One more metric is one function and one line here, with its definition.

Three kinds, by what they look at; `evaluate(metrics=...)` takes the names of all three:

- `METRICS`: (predicted mask, true mask) of one image;
- `PROBABILITY_METRICS`: (probability map, true mask) of one image;
- `POOLED_METRICS`: (overlap, predicted, true) pixels, summed over all images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from samtune.metrics import overlap
from samtune.metrics.boundary import hd95, surface_dice
from samtune.metrics.protocols import pranet_dice, pranet_iou, probability_mae
from samtune.types import MaskArray, Metric

ProbabilityMetric = Callable[[np.ndarray[Any, np.dtype[Any]], MaskArray], float]
PooledMetric = Callable[[int, int, int], float]

_CLASSMEANS = (overlap.classmean_dice, overlap.classmean_iou)
_MASKS = (overlap.dice, overlap.iou, overlap.precision, overlap.recall, overlap.mae, *_CLASSMEANS, hd95, surface_dice)
_POOLED = (overlap.pooled_dice, overlap.pooled_iou, overlap.gps_released_dice, overlap.gps_released_iou)

METRICS: dict[str, Metric] = {f.__name__: f for f in _MASKS}
PROBABILITY_METRICS: dict[str, ProbabilityMetric] = {f.__name__: f for f in (pranet_dice, pranet_iou, probability_mae)}
POOLED_METRICS: dict[str, PooledMetric] = {f.__name__: f for f in _POOLED}

_RELEASED = "{} as released with GPS: background pixels are ignored, so all-foreground is 1. For comparison only."
DEFINITIONS: dict[str, str] = {
    "mDice": "Mean over images of the foreground Dice at probability > 0.5, at the original size; only images whose "
    "truth has foreground count.",
    "mIoU": "Mean over images of the foreground IoU at probability > 0.5, at the original size; only images whose "
    "truth has foreground count.",
    "ci95": "95 % percentile bootstrap interval of the mean over images (1000 resamples, seed 0).",
    "dice": "2 TP / (2 TP + FP + FN) of the foreground, per image; undefined where the truth has no foreground.",
    "iou": "TP / (TP + FP + FN) of the foreground, per image; undefined where the truth has no foreground.",
    "precision": "TP / (TP + FP) per image, 0 of an empty prediction; undefined where the truth has no foreground.",
    "recall": "TP / (TP + FN) per image; undefined where the truth has no foreground.",
    "mae": "Share of wrong pixels of the mask, per image; lower is better.",
    "classmean_dice": "Mean of foreground and background Dice, per image.",
    "classmean_iou": "Mean of foreground and background IoU, per image.",
    "hd95": "95th percentile distance of the outlines in pixels, per image; undefined if a mask is empty.",
    "surface_dice": "Share of the outlines within 2 px of each other; undefined if both masks are empty.",
    "pranet_dice": "PraNet protocol: Dice of the stretched probability, mean over 256 thresholds, per image.",
    "pranet_iou": "PraNet protocol: IoU of the stretched probability, mean over 256 thresholds, per image.",
    "probability_mae": "PraNet protocol: mean absolute error of the stretched probability, per image.",
    "pooled_dice": "Dice of all pixels of the set at once; large objects dominate.",
    "pooled_iou": "IoU of all pixels of the set at once; large objects dominate.",
    "gps_released_dice": _RELEASED.format("Dice"),
    "gps_released_iou": _RELEASED.format("IoU"),
    "empty_images": "Number of images without foreground in the truth; all other numbers leave them out.",
    "empty_false": "Share of these images for which a mask is predicted; lower is better.",
    "empty_false_px": "Mean area in pixels of these false masks.",
    "empty_false_area": "Mean area of these false masks as a share of the picture.",
    **{
        f"{size}_{name}": f"{label} images whose object covers {share} of the picture."
        for size, share in (("small", "under 5 %"), ("medium", "5 to 20 %"), ("large", "20 % or more"))
        for name, label in (("images", "Number of"), ("dice", "Mean Dice of"), ("iou", "Mean IoU of"))
    },
}
