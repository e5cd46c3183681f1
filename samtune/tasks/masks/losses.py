"""Losses of segmentation: what training minimises, and what scoring differentiates; all in fp32."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from samtune.models.sam.model import upsample_logits
from samtune.scoring.contrastive import pixel_contrastive
from samtune.scoring.score import ScoreLoss
from samtune.types import Batch, LogitLoss


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


def contrastive_loss(*, cells: int, temperature: float, seed: int) -> ScoreLoss:
    """Returns the pixel-level supervised contrastive loss on image embeddings, its draw of cells seeded."""
    generator = torch.Generator().manual_seed(seed)

    pixels = partial(pixel_contrastive, cells=cells, temperature=temperature, generator=generator)
    return lambda model, batch: pixels(model.features(batch), batch)


def task_loss(loss: LogitLoss = dice_bce) -> ScoreLoss:
    """Returns the loss of the training, through the decoder: what GPS's release scores with, as SAM's is not random."""
    return lambda model, batch: loss(upsample_logits(model(batch), batch.images.shape[-1]), batch)
