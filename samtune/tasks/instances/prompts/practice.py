"""How does a model practise prompts while it trains? As Segment Anything did, with several objects at once.

Of each picture some objects are drawn; half of them are shown by a box with jitter, half by a click. Each answer is
then corrected by a click in the region where it is wrong, with the answer itself as a further prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from samtune.models.segmenter import Embedded, Segmenter
from samtune.tasks.pixels import coverage, object_loss
from samtune.tasks.probe.answers import asked
from samtune.tasks.prompts import box_of, point_in
from samtune.types import Batch


@dataclass(frozen=True)
class Answers:
    """What the decoder said of M prompted objects.

    Attributes:
        low: (M, 4, h, w) logits, see `Segmenter.decode_all`.
        expected: (M, 4), the IoU with the truth that it expects of each.
        target, valid: (M, 1, h, w) shares of each small pixel that the object, and the picture, cover.
        ambiguous: a single click asked, which may mean several things: the best of three masks counts too.
    """

    low: Tensor
    expected: Tensor
    target: Tensor
    valid: Tensor
    ambiguous: bool


@dataclass(frozen=True)
class Drawn:
    """Objects drawn from a batch.

    Attributes:
        which: (M,) int64, of each object the item that it is in.
        objects: (M, 1, S, S) bool.
        boxes: (M, 4) float32, jittered; `points` is (M, 1, 2), a click in each; both in the input frame.
    """

    which: Tensor
    objects: Tensor
    boxes: Tensor
    points: Tensor


class PromptPractice(nn.Module):
    """A model of maps that also answers prompts while it trains, from the same embeddings; else it is the model.

    Args:
        objects: how many of a picture's objects are asked for, at most.
    """

    def __init__(self, model: Segmenter, objects: int) -> None:
        super().__init__()
        self.model, self.objects = model, objects

    def forward(self, batch: Batch) -> Tensor | tuple[Tensor, list[Answers]]:
        """Returns (B, n, S/4, S/4) logits of the maps; in training also the answers to prompts, in rounds."""
        if not self.training:
            return self.model.forward(batch)
        embedded = self.model.embed(batch)
        drawn = draw_objects(batch.masks.cpu(), self.objects)
        return self.model.decode_classes(embedded), self._rounds(embedded, drawn, batch.valid())

    def _rounds(self, embedded: Embedded, drawn: Drawn, valid: Tensor) -> list[Answers]:
        """Asks for the first half by boxes, for the others by clicks, and corrects both."""
        side, device, count = 4 * embedded.image.shape[-1], valid.device, len(drawn.which)
        rounds = []
        for part, boxed in ((slice(count // 2), True), (slice(count // 2, count), False)):
            which = drawn.which[part].to(device)
            if not len(which):
                continue
            of = embedded[which]
            target, inside = coverage(drawn.objects[part].to(device), valid[which], side)
            boxes = drawn.boxes[part].to(device) if boxed else None
            points = None if boxed else drawn.points[part].to(device)
            first = Answers(*self.model.decode_all(of, asked(boxes, points)), target, inside, ambiguous=not boxed)
            low = first.low[:, :1].detach()
            clicks, signs = correction(low, target, inside, valid.shape[-1])
            prompts = asked(boxes, clicks if points is None else torch.cat([points, clicks], dim=1), signs)
            rounds += [first, Answers(*self.model.decode_all(of, prompts, low), target, inside, ambiguous=False)]
        return rounds


def practice_loss(rounds: Sequence[Answers], iou_weight: float) -> Tensor | float:
    """Returns the mean over rounds of Dice + BCE of the objects, and of `iou_weight` times the error of the IoU head.

    The first mask counts, which answers every prompt; after a single click also the best of the three others. The head
    learns the IoU of all four, by squared error. 0.0 where nothing was asked.
    """
    total: Tensor | float = 0.0
    for answers in rounds:
        count, masks = answers.low.shape[:2]
        repeated = [t.repeat_interleave(masks, dim=0) for t in (answers.target, answers.valid)]
        each = object_loss(answers.low.flatten(0, 1)[:, None], *repeated).view(count, masks)
        shapes = each[:, 0] + (each[:, 1:].amin(dim=1) if answers.ambiguous else 0.0)
        error = (answers.expected.float() - reached(answers.low.detach(), answers.target, answers.valid)) ** 2
        total = total + (shapes.mean() + iou_weight * error.mean()) / len(rounds)
    return total


def reached(low: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Returns (M, n) IoUs of (M, n, h, w) logits with (M, 1, h, w) shares, cut at one half of a small pixel.

    What is found in the padding, where no loss is, counts as nothing.
    """
    found, true = (low > 0) & (valid >= 0.5), target >= 0.5
    common, either = (found & true).flatten(2).sum(2), (found | true).flatten(2).sum(2)
    return common / either.clamp(min=1)


def draw_objects(masks: Tensor, most: int) -> Drawn:
    """Draws at most so many objects of each of (B, 1, S, S) int32 maps, by torch's generator, in random order."""
    found = []
    for item, labels in enumerate(masks[:, 0].numpy()):
        numbers = np.unique(labels)[int((labels == 0).any()) :]
        for place in torch.randperm(len(numbers))[:most].tolist():
            mask = labels == numbers[place]
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            found.append((item, mask, box_of(mask, rng=rng), point_in(mask, rng=rng)))
    order = torch.randperm(len(found)).tolist()
    which, objects, boxes, points = zip(*(found[i] for i in order), strict=True) if found else ((), (), (), ())
    side = masks.shape[-1]
    return Drawn(
        torch.tensor(which, dtype=torch.int64),
        torch.from_numpy(np.array(objects, dtype=np.bool_).reshape(-1, 1, side, side)),
        torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        torch.from_numpy(np.array(points, dtype=np.float32).reshape(-1, 1, 2)),
    )


def correction(low: Tensor, target: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Draws a click where an answer is wrong, by torch's generator; where it is right, on the object.

    Args:
        low: (M, 1, h, w) logits; `target` of the shares that the object covers, `valid` of those of the picture: in
            the padding nobody clicks.
        side: S of the input frame.

    Returns:
        (M, 1, 2) float32 points in the input frame, and (M, 1) int64: 1 where the object was missed, 0 where there is
        too much.
    """
    found, true = ((low > 0) & (valid >= 0.5)).flatten(1).cpu(), (target >= 0.5).flatten(1).cpu()
    wrong = found != true
    chances = torch.where(wrong.any(1, keepdim=True), wrong, target.flatten(1).cpu() > 0).float()
    chances[~chances.any(1)] = 1.0
    places = torch.multinomial(chances, 1)  # (M, 1)
    signs = ~(found & wrong).gather(1, places)
    width, step = low.shape[-1], side // low.shape[-1]
    rows, columns = places // width, places % width
    points = torch.stack([columns, rows], dim=-1) * step + (step - 1) / 2
    return points.to(low.device), signs.long().to(low.device)
