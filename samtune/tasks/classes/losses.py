"""Losses of classification: what training minimises, and what scoring differentiates."""

import torch.nn.functional as F
from torch import Tensor

from samtune.models.backbone import Backbone
from samtune.scoring.contrastive import supervised_contrastive
from samtune.scoring.score import ScoreLoss
from samtune.types import LabelledBatch


def cross_entropy(logits: Tensor, batch: LabelledBatch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a softmax, in fp32, against the labels or the shares of a mixed batch.

    Args:
        logits: (B, classes).
        label_smoothing: part of each target that is spread over all classes, in [0, 1).

    Returns:
        A scalar in fp32, the mean over the images.
    """
    targets = batch.labels if batch.targets is None else batch.targets
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def image_contrastive(*, temperature: float) -> ScoreLoss:
    """Returns the supervised contrastive loss on the features before the head: no random head takes part."""

    def loss(model: Backbone, batch: LabelledBatch) -> Tensor | None:
        return supervised_contrastive(model.features(batch), batch.labels, temperature=temperature)

    return loss


def head_cross_entropy(model: Backbone, batch: LabelledBatch) -> Tensor:
    """Cross-entropy through a fresh head: SPT's loss, and "Head + CE" of GPS, Tab. 6 (c)."""
    return F.cross_entropy(model(batch).float(), batch.labels)
