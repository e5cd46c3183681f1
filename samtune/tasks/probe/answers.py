"""What does a model answer when it is told of true objects, by a box or by clicks?

The prompts come from the true objects, and a further click is set where a person would: in the middle of the largest
error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from samtune.data.frames import Collate
from samtune.metrics.overlap import dice
from samtune.models.backbone import Backbone
from samtune.tasks.pixels import to_original
from samtune.tasks.probe.parts import boxes_of, part_around
from samtune.tasks.prompts import box_of, point_in
from samtune.types import Answering, Batch, MaskArray, Prompts, Tiles

KINDS = {"box": "its box", "point": "a click in its middle", "points3": "that click and two in the largest errors"}
MOST = 32  # objects of an image, spread over its numbers
AT_ONCE = 16  # objects in one pass of the decoder

T = TypeVar("T")
Dice = Mapping[str, float]
"""Kind of prompt -> mean Dice of the objects of an image; empty where it has none."""


@torch.no_grad()
def prompted_dice(model: Backbone, batch: Batch, *, most: int = MOST) -> list[tuple[int, Dice]]:
    """Returns for each item of a batch with truths how many of its objects were asked for, and their mean Dice.

    Objects of which no pixel is left in the input frame are not asked for. With tiles, each is asked for in the part
    of the picture that shows it best, see `part_around`.

    Args:
        model: in evaluation mode; the batch is on its device, and its masks and truths are maps of objects.
        most: objects of an image, spread over its numbers.
    """
    if batch.tiles is not None:
        parts = (part.to(model.device) for part in _single_objects(batch, batch.tiles, most))
        return [_joined([dice_by_prompt(model.answering(part), part, 1) for part in parts])]
    return [dice_by_prompt(model.answering(one), one, most) for one in batch.split(1)]


def dice_by_prompt(answer: Answering, batch: Batch, most: int) -> tuple[int, Dice]:
    """Returns what `prompted_dice` does for the one picture of a batch, of which `answer` is asked."""
    side, (height, width) = batch.images.shape[-1], batch.sizes_input[0]
    small, truth = batch.masks[0, 0, :height, :width].cpu().numpy(), batch.truths[0]
    numbers = spread([number for number in np.unique(small).tolist() if number], most)
    if not numbers:
        return 0, {}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(0, len(numbers), AT_ONCE):
        part = numbers[start : start + AT_ONCE]
        masks = [small == number for number in part]
        for kind, low in _answers(answer, masks, batch.images.device, side).items():
            logits = (to_original(one, side, (height, width), truth.shape) for one in low[:, 0])
            truths = (truth == number for number in part)
            found[kind] += [dice((one > 0).cpu().numpy(), true) for one, true in zip(logits, truths, strict=True)]
    return len(numbers), {kind: float(np.mean(values)) for kind, values in found.items()}


def asked(boxes: Tensor | None, points: Tensor | None, signs: Tensor | None = None) -> Prompts:
    """Returns prompts of (M, 4) boxes and (M, P, 2) points; of the last points `signs`, (M, <= P), are the labels.

    Points without a sign are on the object.
    """
    if points is None:
        return Prompts(boxes_input=boxes)
    labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
    if signs is not None:
        labels[:, -signs.shape[1] :] = signs
    return Prompts(boxes, points, labels)


def spread(items: Sequence[T], most: int) -> list[T]:
    """Returns at most so many of the items, spread over them."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places).tolist()]


def _single_objects(batch: Batch, tiles: Tiles, most: int) -> Iterator[Batch]:
    """Yields the parts around objects of the large picture of a batch, each with the map of this object alone."""
    image, labels = batch.images[0].permute(1, 2, 0).cpu().numpy(), batch.truths[0]
    boxes = boxes_of(labels)
    for number in spread(list(boxes), most):
        part = part_around(batch.names[0], image, labels, boxes[number], tiles)
        mask, truth = part.mask * (part.mask == number), part.truth * (part.truth == number)
        yield Collate(tiles.side)([replace(part, mask=mask, truth=truth)])


def _joined(found: Sequence[tuple[int, Dice]]) -> tuple[int, Dice]:
    """Returns the number of all objects and their mean Dice, of those of one each, or none."""
    each = [by_kind for count, by_kind in found if count]
    return len(each), {kind: float(np.mean([one[kind] for one in each])) for kind in (KINDS if each else ())}


def _answers(answer: Answering, masks: Sequence[MaskArray], device: torch.device, side: int) -> dict[str, Tensor]:
    """Returns kind of prompt -> (M, 1, h, w) float32 logits for M objects, (h, w) bool masks in the input frame."""
    boxes, points = (
        torch.from_numpy(np.stack([draw(mask) for mask in masks])).to(device) for draw in (box_of, point_in)
    )
    clicks, signs = points[:, None], torch.ones(len(masks), 1, dtype=torch.int64, device=device)
    found = {"box": answer(asked(boxes, None), None), "point": answer(asked(None, clicks), None)}
    low = found["point"]
    for _ in range(2):
        step = side // low.shape[-1]
        further = [_largest_error(one[0].cpu().numpy() > 0, mask, step) for one, mask in zip(low, masks, strict=True)]
        clicks = torch.cat([clicks, torch.tensor([[place] for place, _ in further], device=device)], dim=1)
        signs = torch.cat([signs, torch.tensor([[sign] for _, sign in further], device=device)], dim=1)
        low = answer(asked(None, clicks, signs), low)
    return {kind: value.float() for kind, value in (found | {"points3": low}).items()}


def _largest_error(found: MaskArray, mask: MaskArray, step: int) -> tuple[tuple[float, float], int]:
    """Returns the XY place in the picture that is deepest in what is wrong, and 1 where it was missed, else 0.

    Where nothing is wrong, that is in the middle of the object.
    """
    height, width = mask.shape
    large = np.repeat(np.repeat(found, step, axis=0), step, axis=1)[:height, :width]  # without the padding
    missed = mask & ~large if (large != mask).any() else mask
    depths = [
        cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for wrong in (large & ~mask, missed)
    ]
    sign = int(depths[1].max() >= depths[0].max())
    row, column = np.unravel_index(int(depths[sign].argmax()), mask.shape)
    return (float(column), float(row)), sign
