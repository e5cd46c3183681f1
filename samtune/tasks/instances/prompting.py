"""How well does a model segment an object that it is shown: by a box, a click, three clicks? Dice by kind of prompt.

The prompts come from the true objects. A further click is set where a person would: in the middle of the largest error.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from samtune.metrics.overlap import dice
from samtune.models.sam.model import SamModel
from samtune.tasks.instances.practice import asked
from samtune.tasks.pixels import to_original
from samtune.tasks.prompts import box_of, point_in
from samtune.types import Batch, MaskArray

KINDS = {"box": "its box", "point": "a click in its middle", "points3": "that click and two in the largest errors"}
MOST = 32  # objects of an image, spread over its numbers
_AT_ONCE = 16  # objects in one pass of the decoder

Dice = Mapping[str, float]
"""Kind of prompt -> mean Dice of the objects of an image; empty where it has none."""


@torch.no_grad()
def prompted_dice(model: SamModel, batch: Batch) -> list[tuple[int, Dice]]:
    """Returns for each item of a batch with truths how many of its objects were asked for, and their mean Dice.

    At most 32 objects of an image are asked for; those of which no pixel is left in the input frame are not.

    Args:
        model: in evaluation mode; the batch is on its device.
    """
    embeddings = model.features(batch)
    return [_of_image(model, embeddings[item : item + 1], batch, item) for item in range(len(batch))]


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Returns at most so many of the numbers, spread over them."""
    return [
        numbers[place]
        for place in np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
    ]


def _of_image(model: SamModel, embedding: Tensor, batch: Batch, item: int) -> tuple[int, Dice]:
    height, width = batch.sizes_input[item]
    small, truth = batch.masks[item, 0, :height, :width].cpu().numpy(), batch.truths[item]
    numbers = spread([number for number in np.unique(small).tolist() if number], MOST)
    if not numbers:
        return 0, {}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        masks = [small == number for number in part]
        for kind, low in _answers(model, embedding.expand(len(part), -1, -1, -1), masks).items():
            logits = (to_original(one, batch.images.shape[-1], (height, width), truth.shape) for one in low[:, 0])
            truths = (truth == number for number in part)
            found[kind] += [dice((one > 0).cpu().numpy(), true) for one, true in zip(logits, truths, strict=True)]
    return len(numbers), {kind: float(np.mean(values)) for kind, values in found.items()}


def _answers(model: SamModel, embeddings: Tensor, masks: Sequence[MaskArray]) -> dict[str, Tensor]:
    """Returns kind of prompt -> (M, 1, h, w) float32 logits for M objects, (h, w) bool masks in the input frame."""
    device, step = model.device, model.image_size // (4 * embeddings.shape[-1])
    boxes, points = (
        torch.from_numpy(np.stack([draw(mask) for mask in masks])).to(device) for draw in (box_of, point_in)
    )
    clicks, signs = points[:, None], torch.ones(len(masks), 1, dtype=torch.int64, device=device)
    found = {
        "box": model.decode(embeddings, asked(boxes, None)),
        "point": model.decode(embeddings, asked(None, clicks)),
    }
    low = found["point"]
    for _ in range(2):
        further = [_largest_error(one[0].cpu().numpy() > 0, mask, step) for one, mask in zip(low, masks, strict=True)]
        clicks = torch.cat([clicks, torch.tensor([[place] for place, _ in further], device=device)], dim=1)
        signs = torch.cat([signs, torch.tensor([[sign] for _, sign in further], device=device)], dim=1)
        low = model.decode(embeddings, asked(None, clicks, signs), low)
    return {kind: value.float() for kind, value in (found | {"points3": low}).items()}


def _largest_error(found: MaskArray, mask: MaskArray, step: int) -> tuple[tuple[float, float], int]:
    """Returns the XY place in the input frame that is deepest in what is wrong, and 1 where it was missed, else 0."""
    height, width = mask.shape
    true = np.zeros((found.shape[0] * step, found.shape[1] * step), dtype=np.bool_)
    true[:height, :width] = mask
    large = np.repeat(np.repeat(found, step, axis=0), step, axis=1)
    depths = [
        cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for wrong in (large & ~true, true & ~large)
    ]
    sign = int(depths[1].max() >= depths[0].max())
    row, column = np.unravel_index(int(depths[sign].argmax()), true.shape)
    return (float(column), float(row)), sign
