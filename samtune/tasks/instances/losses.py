"""What does training of instances minimise beside the practice of prompts? Dice + BCE of the three maps, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from samtune.tasks.instances.separate import targets_of
from samtune.types import Batch


def maps_dice_bce(logits: Tensor, batch: Batch, *, dice_weight: float = 1.0, bce_weight: float = 1.0) -> Tensor:
    """Returns Dice + binary cross-entropy of (B, 3, S, S) logits in the input frame, in fp32; padding never counts.

    Both take the targets of `separate.targets_of`, also the shares of the centre map. The Dice part is MONAI's, of each
    map over all items; the cross-entropy is a mean over the valid pixels of each item.
    """
    from monai.losses.dice import DiceLoss

    valid, target, logits = batch.valid(), targets_of(batch), logits.float()
    dice: Tensor = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, batch=True)(logits.sigmoid() * valid, target)
    per_pixel = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
    bce = (per_pixel.sum(dim=(1, 2, 3)) / (logits.shape[1] * valid.sum(dim=(1, 2, 3)))).mean()
    return dice_weight * dice + bce_weight * bce


LOSSES = {"dice_bce": maps_dice_bce}
