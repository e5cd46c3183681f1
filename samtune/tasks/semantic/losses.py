"""What does training of several classes minimise? Dice + cross-entropy in fp32, and practice that keeps boxes answered.

A model that learns classes alone forgets how to segment what a box shows, though Segment Anything's own tokens stay:
the encoder and the decoder's transformer are shared. So it practises, on regions of the maps.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtune.models.segmenter import Embedded, Segmenter
from samtune.tasks.prompts import box_of, components
from samtune.types import IGNORE, Batch, Prompts


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


class BoxPractice(nn.Module):
    """A model that also answers a box per image while it trains, from the same embeddings; else it is the model.

    Args:
        embed: the model's, or a cache of it.
    """

    def __init__(self, model: Segmenter, embed: Callable[[Batch], Embedded]) -> None:
        super().__init__()
        self.model, self.embed = model, embed

    def forward(self, batch: Batch) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Returns (B, n, S/4, S/4) logits of classes; in training also (B, 1, S/4, S/4) of boxed objects, and these.

        The objects are (B, 1, S, S) bool, see `draw_objects`.
        """
        if not self.training:
            return self.model.answer(self.embed(batch), batch.prompts)
        embedded, device = self.embed(batch), batch.images.device
        boxes, objects = draw_objects(batch.masks.cpu())
        answer = self.model.decode(embedded, Prompts(boxes_input=boxes.to(device)))
        return self.model.decode_classes(embedded), answer, objects.to(device)


def draw_objects(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a connected region of a class from each (1, S, S) map, all classes alike, by torch's generator.

    Returns:
        (B, 4) boxes, XYXY in the input frame, jittered as in Segment Anything's training, and (B, 1, S, S) bool
        regions. Where no pixel counts the region is empty and the box the whole frame.
    """
    side = maps.shape[-1]
    boxes, objects = torch.tensor([[0.0, 0.0, side - 1, side - 1]]).repeat(len(maps), 1), torch.zeros_like(maps).bool()
    for item, found in enumerate(maps[:, 0].numpy()):
        shown = [value for value in np.unique(found).tolist() if value != IGNORE]
        if shown:
            regions = components(found == shown[_draw(len(shown))])
            region = regions[_draw(len(regions))]
            boxes[item] = torch.from_numpy(box_of(region, rng=np.random.default_rng(_draw(2**31))))
            objects[item, 0] = torch.from_numpy(region)
    return boxes, objects


def _draw(count: int) -> int:
    return int(torch.randint(count, (1,)))
