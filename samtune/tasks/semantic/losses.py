"""Losses of several classes: what training minimises, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from samtune.types import IGNORE, Batch


def dice_ce(logits: Tensor, batch: Batch, *, dice_weight: float = 1.0, ce_weight: float = 1.0) -> Tensor:
    """Returns Dice + cross-entropy of the softmax of (B, n, S, S) logits in the input frame, in fp32.

    The Dice part is MONAI's `DiceLoss`, `1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)` per item and class; its mean is
    over the classes that an item shows, then over the items: of a class that is not there, the cross-entropy speaks.
    The cross-entropy is a mean over the pixels of each item. Pixels that are `IGNORE`, and the padding, never count; an
    item of such pixels alone adds nothing.
    """
    from monai.losses.dice import DiceLoss

    target, logits = batch.masks[:, 0].long(), logits.float()  # (B, S, S)
    counted = target != IGNORE
    per_pixel = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    ce = (per_pixel.sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)).mean()
    classes = logits.shape[1]
    hot = F.one_hot(target.masked_fill(~counted, classes), classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
    each: Tensor = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, reduction="none")(logits.softmax(1) * counted[:, None], hot)
    shown = hot.amax(dim=(2, 3))  # (B, n)
    dice = ((each.flatten(1) * shown).sum(1) / shown.sum(1).clamp(min=1)).mean()
    return dice_weight * dice + ce_weight * ce


LOSSES = {"dice_ce": dice_ce}
