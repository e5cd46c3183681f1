"""Metrics of probability maps, as the polyp literature since PraNet reports them (Fan et al., MICCAI 2020).

Each map is stretched to [0, 1] and cut at the 256 thresholds 0, 1/255, ..., 1; Dice and IoU are means over these.
Numbers of this protocol and of the plain `mDice` (one cut at 0.5) differ: never mix them in one table.
"""

from typing import Any

import numpy as np

from samtune.types import MaskArray

THRESHOLDS = 256
Array = np.ndarray[Any, np.dtype[Any]]


def pranet_dice(probability: Array, truth: MaskArray) -> float:
    """Returns the mean Dice of one image over the 256 thresholds; arguments as in `pranet_curves`."""
    return float(pranet_curves(probability, truth)[0].mean())


def pranet_iou(probability: Array, truth: MaskArray) -> float:
    """Returns the mean IoU of one image over the 256 thresholds; arguments as in `pranet_curves`."""
    return float(pranet_curves(probability, truth)[1].mean())


def probability_mae(probability: Array, truth: MaskArray) -> float:
    """Returns the mean of |stretched probability - truth|; arguments as in `pranet_curves`."""
    return float(np.abs(_stretched(probability) - truth).mean())


def pranet_curves(probability: Array, truth: MaskArray) -> Array:
    """Computes Dice and IoU of one image at every threshold, from two histograms instead of 256 masks.

    The mask at threshold k/255 is `stretched >= k/255`; a map of one value is left as it is. As in the protocol, a mask
    without any true positive scores 0, also when the truth is empty.

    Args:
        probability: (H, W) float in [0, 1], original size.
        truth: (H, W) bool, original size.

    Returns:
        (2, 256): Dice and IoU by rising threshold.
    """
    # The tiny shift keeps k/255, which a float can't hold exactly, on its own level.
    levels = np.floor(_stretched(probability) * (THRESHOLDS - 1) + 1e-4).astype(np.int64)
    pred_px = _at_least(levels.ravel())
    overlap_px = _at_least(levels[truth])
    truth_px = int(np.count_nonzero(truth))
    # An empty mask meets an empty truth at most in maps of one value; max(1, .) only avoids 0/0 there.
    dice = 2 * overlap_px / np.maximum(pred_px + truth_px, 1)
    iou = overlap_px / np.maximum(pred_px + truth_px - overlap_px, 1)
    return np.stack([dice, iou])


def _stretched(probability: Array) -> Array:
    low, high = float(probability.min()), float(probability.max())
    if low == high:
        return probability.astype(np.float64)
    return (probability.astype(np.float64) - low) / (high - low)


def _at_least(levels: Array) -> Array:
    """Returns, for each threshold, how many levels reach it."""
    return np.cumsum(np.bincount(levels, minlength=THRESHOLDS)[::-1])[::-1]
