"""Distances between the outlines of two masks, computed by MONAI, in pixels of the original image.

Both cost far more than the overlap metrics, so `evaluate` runs them only on request.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from samtune.types import MaskArray

TOLERANCE_PX = 2.0


def hd95(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns the 95th percentile of the distances between the two outlines, in pixels; 0 is best.

    The larger of both directions (prediction to truth and back), as `monai.metrics.compute_hausdorff_distance`. NaN
    when one mask is empty: there is no distance to nothing, and any number put in its place would rule the mean.

    Args:
        prediction: (H, W) bool, original size.
        truth: (H, W) bool, original size.
    """
    if not (prediction.any() and truth.any()):
        return math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    masks = _one_hot(prediction), _one_hot(truth)
    with _no_advice_to_monai():
        return float(compute_hausdorff_distance(*masks, include_background=True, percentile=95.0))


def surface_dice(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns the share of both outlines that lies within 2 pixels of the other one, in [0, 1].

    The normalised surface Dice (Nikolov et al. 2021), as `monai.metrics.compute_surface_dice`. NaN when both masks
    are empty, 0 when one is. Arguments as in `hd95`.
    """
    if not (prediction.any() and truth.any()):
        return 0.0 if prediction.any() or truth.any() else math.nan
    from monai.metrics.surface_dice import compute_surface_dice

    masks = _one_hot(prediction), _one_hot(truth)
    with _no_advice_to_monai():
        return float(compute_surface_dice(*masks, [TOLERANCE_PX], include_background=True))


@contextmanager
def _no_advice_to_monai() -> Iterator[None]:
    """Hides what MONAI warns of in its own code: that it calls itself with arguments which are to go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _one_hot(mask: MaskArray) -> Tensor:
    return torch.from_numpy(mask)[None, None].float()  # (1, 1, H, W): one item, one class
