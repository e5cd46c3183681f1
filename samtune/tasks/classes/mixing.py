"""Mixed training images: MixUp (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F

from samtune.tasks.classes.views import seeded
from samtune.types import LabelledBatch

Mixer = Callable[[LabelledBatch, int], LabelledBatch]
"""(batch, step) to the batch with mixed images and `targets`."""


def mixer(*, mixup: float, cutmix: float, classes: int, seed: int) -> Mixer | None:
    """Returns what mixes each image of a batch with its neighbour; where both are on, one of them is drawn per batch.

    Args:
        mixup: parameter of the Beta distribution of MixUp's share, 0 = off.
        cutmix: the same of CutMix's share of the area, 0 = off.
        classes: of the data set.
        seed: with the step, all that the draws depend on.

    Returns:
        A function that gives float32 images in 0..255 and (B, classes) float32 targets, the batch's labels unchanged;
        a batch of one image keeps its pixels. None where both are off.
    """
    from torchvision.transforms import v2

    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    steps = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
    if not steps:
        return None
    transform = v2.RandomChoice(steps)

    def mix(batch: LabelledBatch, step: int) -> LabelledBatch:
        if len(batch) == 1:
            return replace(batch, targets=F.one_hot(batch.labels, classes).float())
        with seeded(seed, step):
            images, targets = transform(batch.images.float(), batch.labels)
        return replace(batch, images=images, targets=targets)

    return mix
