"""Scores: the gradient of a loss at the pretrained weights, or what each layer takes in, summed over training images.

GPS takes the absolute value of the signed sum of gradients as a weight's importance (Zhang et al., CVPR 2024, section
3.1), FPS (arXiv:2510.27359) the product of the weight's and the mean input's, which needs no backward pass.
Scoring runs in fp32 and eval mode and sees the training split only.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from samtune.base.share import Share
from samtune.errors import DataError, NonFiniteError
from samtune.models.backbone import Backbone, evaluation_mode
from samtune.scoring.contrastive import Drawing
from samtune.scoring.inputs import InputSums
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


class Totals(Protocol):
    """What a pass adds up."""

    squares: dict[str, Tensor] | None

    def take(self, batch: Any) -> bool:
        """Adds a batch on the model's device; False where it has nothing to add."""

    def skip(self, images: int) -> None:
        """Passes over a batch that counts elsewhere: in another process, or before the pass was cut off."""

    def found(self) -> dict[str, Tensor]:
        """Returns the sums so far, the live ones; zeros may be left out."""

    def sums(self) -> dict[str, Tensor]:
        """Returns the sums, of all names."""

    def load(self, start: PartialScores) -> None:
        """Goes on from sums."""


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
    with evaluation_mode(model), _every_gradient(model):
        scores = _pass(model, batches, _Gradients(model, loss, squares), per=per, keeper=keeper, share=share)
    if not scores.batches:
        raise DataError(
            f"no image can be scored: no {per} has two cells or images of one class, which a contrastive loss needs. "
            "Use another score.loss, larger batches, or more images."
        )
    _check_finite(scores, "gradient", ", though the losses are")
    if skipped := scores.skipped:
        of = scores.batches + skipped
        logger.warning("%d of %d scoring batches had no two cells or images of one class", skipped, of)
    return scores


def score_inputs(
    model: Backbone, batches: Batches, *, keeper: PassKeeper | None = None, share: Share | None = None
) -> Scores:
    """Sums the mean |input| of each linear and conv weight over images, by forward passes up to the features.

    Args:
        model, batches, keeper, share: as of `score`.

    Returns:
        For each image the mean over its positions, summed over the images, in the shapes of `input_shapes`.

    Raises:
        DataError: no batch.
        NonFiniteError: an input that is NaN or infinite.
    """
    with evaluation_mode(model), torch.no_grad():
        scores = _pass(model, batches, _Inputs(model), keeper=keeper, share=share)
    if not scores.batches:
        raise DataError("no image can be scored: there is none.")
    _check_finite(scores, "input", "; check the weights and the images")
    if missing := [name for name, found in scores.sums.items() if not bool(found.any())]:
        text = "no input was seen of %d weights, the first of which is %s: all of their entries score zero"
        logger.warning(text, len(missing), missing[0])
    return replace(scores, of="inputs")


def _pass(
    model: Backbone,
    batches: Batches,
    totals: Totals,
    *,
    per: Granularity = "batch",
    keeper: PassKeeper | None,
    share: Share | None,
) -> Scores:
    """Takes batches, this process's or all, into totals, from where an earlier pass was cut off."""
    seen, start = hashlib.sha256(), keeper and keeper.start
    counted, skipped = (start.counted, start.skipped) if start else (0, 0)
    if start:
        totals.load(start)
    for number, batch in enumerate(batches, start=1):
        seen.update(batch.content())
        if (start and number <= start.taken) or (share and number % share.count != share.number):
            totals.skip(len(batch))
            continue
        for part in batch.split(1) if per == "sample" else [batch]:
            took = totals.take(part.to(model.device))
            counted, skipped = counted + took, skipped + (not took)
        if keeper:
            keeper.offer(partial(_partial, totals, number, counted, skipped))
    sums = totals.sums()
    if share:
        share.add([*sums.values(), *(totals.squares or {}).values()])
        counted, skipped = map(int, share.total(counted, skipped))
    return Scores(sums, counted, skipped, seen.hexdigest(), totals.squares, per)


def _partial(totals: Totals, taken: int, counted: int, skipped: int) -> PartialScores:
    return PartialScores(taken, counted, skipped, totals.found(), totals.squares)


def _check_finite(scores: Scores, what: str, advice: str) -> None:
    for name, found in scores.sums.items():
        if not bool(found.isfinite().all()):
            raise NonFiniteError(f"the scoring {what} of {name} is not finite{advice}.")


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


class _Gradients:
    """Sums of gradients; without squares, autograd's own accumulation is the sum, which saves a copy."""

    def __init__(self, model: Backbone, loss: ScoreLoss, squares: bool) -> None:
        self.model, self.loss = model, loss
        self.parameters = dict(model.net.named_parameters())
        self.squares = {n: torch.zeros_like(p) for n, p in self.parameters.items()} if squares else None
        self.kept: dict[str, Tensor] = {}

    def take(self, batch: Any) -> bool:
        """Adds the gradients of one backward pass; False where the loss is undefined."""
        value = self.loss(self.model, batch)
        if value is None:
            return False
        if not bool(value.isfinite()):
            raise NonFiniteError(f"the scoring loss is {value.item()} on images {', '.join(batch.names)}.")
        value.backward()  # type: ignore[no-untyped-call]
        for name, parameter in self.parameters.items() if self.squares is not None else ():
            if (gradient := parameter.grad) is not None:
                self.squares[name].addcmul_(gradient, gradient)  # type: ignore[index]
                self.kept[name] = self.kept[name].add_(gradient) if name in self.kept else gradient.clone()
                parameter.grad = None
        return True

    def skip(self, images: int) -> None:
        """Lets a loss draw for the next batch what it would without this one."""
        if isinstance(self.loss, Drawing):
            self.loss.skip(images)

    def sums(self) -> dict[str, Tensor]:
        """Returns the signed sums, zero where no gradient came."""
        found = self.found()
        return {n: found[n] if n in found else torch.zeros_like(p) for n, p in self.parameters.items()}

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

    def found(self) -> dict[str, Tensor]:
        """Returns the sums of those that got any."""
        if self.squares is not None:
            return self.kept
        return {n: p.grad for n, p in self.parameters.items() if p.grad is not None}


class _Inputs:
    """Sums of inputs, over images."""

    def __init__(self, model: Backbone) -> None:
        self.model, self.watch = model, InputSums(model)
        self.squares: dict[str, Tensor] | None = None

    def take(self, batch: Any) -> bool:
        """Adds what one forward pass takes in."""
        with self.watch:
            self.model.features(batch)
        self.watch.add(len(batch))
        return True

    def skip(self, images: int) -> None:
        """Does nothing: nothing is drawn."""

    def sums(self) -> dict[str, Tensor]:
        """Returns the sums, zero where nothing was seen."""
        return self.watch.sums

    def load(self, start: PartialScores) -> None:
        """Goes on from sums."""
        for name, value in start.sums.items():
            self.watch.sums[name].copy_(value)

    def found(self) -> dict[str, Tensor]:
        """Returns the sums of all."""
        return self.watch.sums


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
