"""Losses of segmentation: what training minimises, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from samtune.types import Batch


def dice_bce(logits: Tensor, batch: Batch, *, dice_weight: float = 1.0, bce_weight: float = 1.0) -> Tensor:
    """Returns Dice + binary cross-entropy of (B, 1, S, S) logits in the input frame, in fp32; padding never counts.

    The Dice part is MONAI's `DiceLoss` per item, `1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`, which is finite and
    falls with p where the mask is empty. The cross-entropy is a mean over the valid pixels of each item.
    """
    from monai.losses.dice import DiceLoss

    valid = batch.valid().to(logits.device)
    target = (batch.masks & valid).float()
    logits = logits.float()
    dice: Tensor = DiceLoss(smooth_nr=1.0, smooth_dr=1.0)(logits.sigmoid() * valid, target)
    per_pixel = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
    bce = (per_pixel.sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3))).mean()
    return dice_weight * dice + bce_weight * bce


LOSSES = {"dice_bce": dice_bce}
