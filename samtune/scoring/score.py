"""Scores: the gradient of a loss at the pretrained weights, summed over training images.

GPS takes the absolute value of this signed sum as a weight's importance (Zhang et al., CVPR 2024, section 3.1).
Scoring runs in fp32 and eval mode and sees the training split only.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from samtune.base.share import Share
from samtune.errors import DataError, NonFiniteError
from samtune.models.backbone import Backbone, evaluation_mode
from samtune.types import Batches, Granularity, Scores

logger = logging.getLogger(__name__)

ScoreLoss = Callable[[Any, Any], Tensor | None]
"""(model, batch) to a scalar, or None where the loss is undefined for the batch."""


@dataclass(frozen=True)
class PartialScores:
    """A scoring pass after `taken` batches: what `Scores` has of them, zeros left out."""

    taken: int
    counted: int
    skipped: int
    sums: Mapping[str, Tensor]
    squares: Mapping[str, Tensor] | None


class PassKeeper(Protocol):
    """Who keeps a scoring pass that may be cut off."""

    @property
    def start(self) -> PartialScores | None:
        """What to go on from; None to start anew."""

    def offer(self, make: Callable[[], PartialScores]) -> None:
        """Is told after each batch; may save what `make` returns, or end the process."""


def score(
    model: Backbone,
    batches: Batches,
    loss: ScoreLoss,
    *,
    per: Granularity = "batch",
    squares: bool = False,
    keeper: PassKeeper | None = None,
    share: Share | None = None,
) -> Scores:
    """Accumulates gradients of `loss` over `batches`; the model is left as it was.

    Args:
        model: pretrained, in fp32.
        batches: of the training split, in fixed order, without augmentation.
        per: what one gradient is of: a batch, or a single image (slower, as images go one by one).
        squares: also sum the squared gradients: SPT's sensitivity, and the standard error of the sums.
        keeper: lets a pass go on where an earlier one was cut off, with the same sums bit for bit.
        share: of several processes, each of which scores every so many-th batch; all get the sums of all.

    Returns:
        The signed sums, in the shapes of the parameters; zero where no gradient came.

    Raises:
        DataError: no batch counted.
        NonFiniteError: a loss that is NaN or infinite.
    """
    seen, start = hashlib.sha256(), keeper and keeper.start
    counted, skipped = (start.counted, start.skipped) if start else (0, 0)
    total = _Totals(model, squares)
    with evaluation_mode(model), _every_gradient(model):
        if start:
            total.load(start)
        for number, batch in enumerate(batches, start=1):
            seen.update(batch.content())
            if (start and number <= start.taken) or (share and number % share.count != share.number):
                continue
            for part in batch.split(1) if per == "sample" else [batch]:
                value = loss(model, part.to(model.device))
                if value is None:
                    skipped += 1
                    continue
                if not bool(value.isfinite()):
                    raise NonFiniteError(f"the scoring loss is {value.item()} on images {', '.join(part.names)}.")
                value.backward()  # type: ignore[no-untyped-call]
                total.take()
                counted += 1
            if keeper:
                keeper.offer(partial(total.partial, number, counted, skipped))
        sums = total.sums()
    if share:
        share.add([*sums.values(), *(total.squares or {}).values()])
        counted, skipped = map(int, share.total(counted, skipped))
    if not counted:
        raise DataError(
            f"no image can be scored: no {per} has two cells or images of one class, which a contrastive loss needs. "
            "Use another score.loss, larger batches, or more images."
        )
    for name, found in sums.items():
        if not bool(found.isfinite().all()):
            raise NonFiniteError(f"the scoring gradient of {name} is not finite, though the losses are.")
    if skipped:
        logger.warning("%d of %d scoring batches had no two cells or images of one class", skipped, counted + skipped)
    return Scores(sums, counted, skipped, seen.hexdigest(), total.squares, per)


@contextmanager
def _every_gradient(model: Backbone) -> Iterator[None]:
    """Lets every parameter gather its gradient inside the block; afterwards none has one, and each is as it was."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, before in required:
            parameter.requires_grad_(before)


class _Totals:
    """Sums of gradients; without squares, autograd's own accumulation is the sum, which saves a copy."""

    def __init__(self, model: Backbone, squares: bool) -> None:
        self.parameters = dict(model.net.named_parameters())
        self.squares = {n: torch.zeros_like(p) for n, p in self.parameters.items()} if squares else None
        self.kept: dict[str, Tensor] = {}

    def take(self) -> None:
        """Takes the gradients of one backward pass."""
        if self.squares is None:
            return
        for name, parameter in self.parameters.items():
            if (gradient := parameter.grad) is not None:
                self.squares[name].addcmul_(gradient, gradient)
                self.kept[name] = self.kept[name].add_(gradient) if name in self.kept else gradient.clone()
                parameter.grad = None

    def sums(self) -> dict[str, Tensor]:
        """Returns the signed sums, zero where no gradient came."""
        found = self._found()
        return {n: found[n] if n in found else torch.zeros_like(p) for n, p in self.parameters.items()}

    def partial(self, taken: int, counted: int, skipped: int) -> PartialScores:
        """Returns the sums so far; they are the live ones."""
        return PartialScores(taken, counted, skipped, self._found(), self.squares)

    def load(self, start: PartialScores) -> None:
        """Goes on from sums."""
        sums = {name: value.to(self.parameters[name].device, copy=True) for name, value in start.sums.items()}
        if self.squares is None:
            for name, value in sums.items():
                self.parameters[name].grad = value
        else:
            self.kept = sums
            for name, value in (start.squares or {}).items():
                self.squares[name].copy_(value)

    def _found(self) -> dict[str, Tensor]:
        if self.squares is not None:
            return self.kept
        return {n: p.grad for n, p in self.parameters.items() if p.grad is not None}


def hash_batches(batches: Batches) -> str:
    """Returns the `images_hash` that `score` would give these batches."""
    seen = hashlib.sha256()
    for batch in batches:
        seen.update(batch.content())
    return seen.hexdigest()


def mean_loss(model: Backbone, batches: Batches, loss: ScoreLoss) -> float:
    """Returns the mean of a scoring loss over batches where it is defined, NaN where it is nowhere; no gradients."""
    with evaluation_mode(model), torch.no_grad():
        found = [loss(model, batch.to(model.device)) for batch in batches]
    values = [float(value) for value in found if value is not None]
    return sum(values) / len(values) if values else math.nan
