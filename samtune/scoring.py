"""Scores: the gradient of a loss at the pretrained weights, summed over training images.

GPS takes the absolute value of this signed sum as a weight's importance (Zhang et al., CVPR 2024, section 3.2).
Scoring runs in fp32 and eval mode and sees the training split only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from samtune.errors import DataError, NonFiniteError
from samtune.losses import dice_bce, pixel_contrastive
from samtune.models.sam import SamModel, upsample_logits
from samtune.types import Batch, Batches, Scores

logger = logging.getLogger(__name__)

ScoreLoss = Callable[[SamModel, Batch], Tensor | None]
"""(model, batch) to a scalar, or None where the loss is undefined for the batch."""


def score(model: SamModel, batches: Batches, loss: ScoreLoss) -> Scores:
    """Accumulates gradients of `loss` over `batches`; the model is left as it was.

    Args:
        model: pretrained, in fp32.
        batches: of the training split, in fixed order, without augmentation.
        loss: one of `contrastive_loss(...)`, `task_loss`.

    Returns:
        The signed sums for every parameter that got a gradient; others are zero.

    Raises:
        DataError: no batch counted.
        NonFiniteError: a loss that is NaN or infinite.
    """
    training = model.training
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    seen, counted, skipped = hashlib.sha256(), 0, 0
    try:
        for batch in batches:
            seen.update(batch.images.numpy().tobytes() + batch.masks.numpy().tobytes())
            value = loss(model, batch.to(model.device))
            if value is None:
                skipped += 1
                continue
            if not bool(value.isfinite()):
                raise NonFiniteError(f"the scoring loss is {value.item()} on images {', '.join(batch.names)}.")
            value.backward()  # type: ignore[no-untyped-call]
            counted += 1
        sums = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
    if not counted:
        raise DataError(
            "no image can be scored: no batch has two cells of one class. Use score.loss=task, or more images."
        )
    if skipped:
        logger.warning("%d of %d scoring batches had no two cells of one class", skipped, counted + skipped)
    return Scores(sums, counted, skipped, seen.hexdigest())


def contrastive_loss(*, cells: int = 128, temperature: float = 0.1, seed: int = 0) -> ScoreLoss:
    """Returns the pixel-level supervised contrastive loss on image embeddings, its draw of cells seeded."""
    generator = torch.Generator().manual_seed(seed)

    def loss(model: SamModel, batch: Batch) -> Tensor | None:
        embeddings = model.encode(model.normalise(batch.images, batch.valid()))
        return pixel_contrastive(embeddings, batch, cells=cells, temperature=temperature, generator=generator)

    return loss


def task_loss(model: SamModel, batch: Batch) -> Tensor:
    """Dice + BCE through the decoder, what GPS's release scores with (its head is not random in SAM)."""
    return dice_bce(upsample_logits(model(batch), batch.images.shape[-1]), batch)
