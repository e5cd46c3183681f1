"""Overlap of a predicted and a true mask: the numbers that a segmentation paper reports.

The per-image functions take one pair of (H, W) bool arrays at the original size of the image, True = foreground, and
raise ValueError for anything else. With TP, FP, FN = pixels that are rightly, wrongly, and not predicted:

    Dice = 2 TP / (2 TP + FP + FN)        IoU = TP / (TP + FP + FN)        Dice = 2 IoU / (1 + IoU)

Undefined cases follow one rule: **both masks empty is 1, exactly one empty is 0**. The pooled functions take pixel
counts summed over all images of a set, and are therefore ruled by the large objects: `overlap_px` foreground in both
masks (TP), `pred_px` in the prediction (TP + FP), `truth_px` in the truth (TP + FN).
"""

import numpy as np

from samtune.types import MaskArray


def dice(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns 2 TP / (2 TP + FP + FN), in [0, 1] (Dice 1945; the F1 score of the pixels)."""
    return pooled_dice(*_counts(prediction, truth))


def iou(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns TP / (TP + FP + FN), in [0, 1] (the Jaccard index)."""
    return pooled_iou(*_counts(prediction, truth))


def precision(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns TP / (TP + FP), the part of the prediction that is right."""
    overlap_px, pred_px, truth_px = _counts(prediction, truth)
    return overlap_px / pred_px if pred_px else float(truth_px == 0)


def recall(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns TP / (TP + FN), the part of the truth that is found."""
    overlap_px, pred_px, truth_px = _counts(prediction, truth)
    return overlap_px / truth_px if truth_px else float(pred_px == 0)


def mae(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns the mean absolute error of the masks: the share of wrong pixels, in [0, 1], 0 is best.

    Papers that follow PraNet take the error of the probability map: `samtune.metrics.protocols.probability_mae`.
    """
    _check(prediction, truth)
    return float(np.mean(prediction ^ truth))


def classmean_dice(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns the mean of the Dice of the foreground and of the background.

    A small object makes it look good: an empty prediction already scores almost 0.5.
    """
    return (dice(prediction, truth) + dice(~prediction, ~truth)) / 2


def classmean_iou(prediction: MaskArray, truth: MaskArray) -> float:
    """Returns the mean of the IoU of the foreground and of the background; see `classmean_dice`."""
    return (iou(prediction, truth) + iou(~prediction, ~truth)) / 2


def pooled_dice(overlap_px: int, pred_px: int, truth_px: int) -> float:
    """Returns the Dice of pixel counts: 2 overlap / (prediction + truth)."""
    total = pred_px + truth_px
    return 2 * overlap_px / total if total else 1.0


def pooled_iou(overlap_px: int, pred_px: int, truth_px: int) -> float:
    """Returns the IoU of pixel counts: overlap / union."""
    union = pred_px + truth_px - overlap_px
    return overlap_px / union if union else 1.0


def gps_released_dice(overlap_px: int, pred_px: int, truth_px: int) -> float:
    """Returns the "mDice" of the released code of GPS, for comparison with its table only.

    That code tells its metric to ignore class 0, so only pixels that are foreground in the truth are looked at: false
    positives do not exist, foreground everywhere scores 1, and `pred_px` has no influence.
    """
    return pooled_dice(overlap_px, overlap_px, truth_px)


def gps_released_iou(overlap_px: int, pred_px: int, truth_px: int) -> float:
    """Returns the "mIoU" of the released code of GPS, which is the pooled recall; see `gps_released_dice`."""
    return pooled_iou(overlap_px, overlap_px, truth_px)


def _counts(prediction: MaskArray, truth: MaskArray) -> tuple[int, int, int]:
    _check(prediction, truth)
    return (int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction)), int(np.count_nonzero(truth)))


def _check(prediction: MaskArray, truth: MaskArray) -> None:
    # A probability map or a 0/255 mask would silently give a wrong number.
    for label, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(
                f"the {label} is {mask.dtype} with shape {mask.shape}; metrics take (H, W) bool: threshold it first."
            )
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction has {prediction.shape} pixels and the truth {truth.shape}; "
            "metrics compare at the original size: resize the logits, not the mask."
        )
