"""`fit`: one loop, read from top to bottom, on Lightning Fabric.

Fabric gives device and precision; the loop owns the rest. Only what `attach` returned is trained, the best epoch by
validation is restored at the end, and the test split is nowhere in sight.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from samtune.data import Loaders
from samtune.errors import NonFiniteError
from samtune.metrics.table import Report
from samtune.models.sam import upsample_logits
from samtune.startpoint import Penalty
from samtune.types import Batch, LogitLoss

logger = logging.getLogger(__name__)

Event = dict[str, Any]
MOST_SKIPPED = 3


@dataclass(frozen=True)
class Optimisation:
    """How to train; the fields are those of the `train` section.

    Attributes:
        epochs: passes over the training images.
        steps: optimizer steps at most, or None.
        lr: peak learning rate.
        accumulate: forward passes per optimizer step.
        optimizer: AdamW, or Adam (whose decay is part of the gradient).
        weight_decay: of that optimizer.
        warmup: share of the steps in which the rate rises linearly.
        min_lr: rate at the end of the cosine.
        clip: largest gradient norm, or None.
        patience: epochs without a better validation mDice before it stops, or None.
    """

    epochs: int
    steps: int | None = None
    lr: float = 1e-3
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 1e-4
    warmup: float = 0.05
    min_lr: float = 0.0
    clip: float | None = 1.0
    patience: int | None = None

    def total_steps(self, batches: int) -> int:
        """Returns the number of optimizer steps when an epoch has `batches` forward passes."""
        steps = self.epochs * math.ceil(batches / self.accumulate)
        return steps if self.steps is None else min(steps, self.steps)

    def rate(self, step: int, total: int) -> float:
        """Returns the learning rate of a step (from 0) of `total`: linear warm-up, then cosine to `min_lr`."""
        warm = round(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / warm
        progress = (step - warm) / max(total - warm, 1)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class FitResult:
    """What `fit` did.

    Attributes:
        steps: optimizer steps taken.
        best_epoch: the epoch whose weights the model has now, from 1.
        best_mDice: its validation mDice.
        seconds: of training and validation.
        skipped: updates left out because a loss or gradient was not finite.
    """

    steps: int
    best_epoch: int
    best_mDice: float
    seconds: float
    skipped: int


def fit(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    loaders: Loaders,
    *,
    fabric: Fabric,
    loss: LogitLoss,
    optimisation: Optimisation,
    validate: Callable[[], Report],
    on_event: Callable[[Event], None],
    penalty: Penalty | None = None,
) -> FitResult:
    """Trains, validates after each epoch, and leaves the model with the best epoch's weights.

    Args:
        model: attached, on Fabric's device; maps a batch to (B, 1, S/4, S/4) logits.
        trainable: what `attach` returned.
        loaders: gives the training batches.
        fabric: device and precision.
        loss: of logits in the input frame.
        optimisation: schedule and optimizer.
        validate: returns the validation report of the model as it is.
        on_event: told of every step and every validation.
        penalty: of `start_penalty`, added to the loss of every update, or None.

    Raises:
        NonFiniteError: three updates in a row without a finite loss and gradient; the model has the best epoch's
            weights then too.
    """
    parameters = list(trainable.values())
    optimizer = _optimizer(fabric, parameters, optimisation)
    total = optimisation.total_steps(len(loaders.train))
    start, step, skipped, in_a_row = time.monotonic(), 0, 0, 0
    best_epoch, best_value, best = 0, -math.inf, _copies(parameters)
    try:
        for epoch in itertools.count(1):
            model.train()
            loaders.set_epoch(epoch - 1)
            began = time.monotonic()
            for batches in _groups(loaders.train, optimisation.accumulate):
                lr = optimisation.rate(step, total)
                value = _accumulate(fabric, model, batches, loss, penalty)
                updated = _update(optimizer, value, batches, lr=lr, clip=optimisation.clip)
                in_a_row = 0 if updated else in_a_row + 1
                skipped += not updated
                if in_a_row >= MOST_SKIPPED:
                    raise _diverged(in_a_row, batches)
                step += 1
                images = sum(len(batch) for batch in batches)
                began, rate = time.monotonic(), images / (time.monotonic() - began)  # loading the batches counts
                now = {"step": step, "epoch": epoch, "split": "train"}
                on_event({**now, "loss": value, "lr": lr, "images_per_s": rate})
                if step >= total:
                    break
            report = validate()
            value = report.mDice
            on_event({"step": step, "epoch": epoch, "split": "val", "mDice": value, "mIoU": report.mIoU})
            if value > best_value:
                best_epoch, best_value, best = epoch, value, _copies(parameters)
            if step >= total or (optimisation.patience and epoch - best_epoch >= optimisation.patience):
                break
    finally:  # an error too leaves the best epoch behind, never a broken one
        with torch.no_grad():
            for parameter, kept in zip(parameters, best, strict=True):
                parameter.copy_(kept)
    return FitResult(step, best_epoch, best_value, time.monotonic() - start, skipped)


def _optimizer(fabric: Fabric, parameters: list[nn.Parameter], optimisation: Optimisation) -> Any:
    cls = torch.optim.AdamW if optimisation.optimizer == "adamw" else torch.optim.Adam
    return fabric.setup_optimizers(cls(parameters, lr=optimisation.lr, weight_decay=optimisation.weight_decay))


def _diverged(updates: int, batches: list[Batch]) -> NonFiniteError:
    return NonFiniteError(
        f"{updates} updates in a row had no finite loss and gradient; the last images were {_names(batches)}. "
        "Lower train.lr, or set train.precision=fp32."
    )


def _update(optimizer: Any, value: float, batches: list[Batch], *, lr: float, clip: float | None) -> bool:
    """Makes one optimizer step, unless the loss or the gradient is not finite; returns whether it did."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(with_gradient, math.inf if clip is None else clip))
    finite = math.isfinite(value) and math.isfinite(norm)
    if finite:
        optimizer.step()
    else:
        logger.warning("update skipped: loss %s, gradient norm %s on %s", value, norm, _names(batches))
    optimizer.zero_grad()
    return finite


def _accumulate(
    fabric: Fabric, model: nn.Module, batches: list[Batch], loss: LogitLoss, penalty: Penalty | None
) -> float:
    """Runs forward and backward over the batches of one update; returns their loss per image, with the penalty."""
    total, images = 0.0, sum(len(batch) for batch in batches)
    for batch in batches:
        batch = batch.to(fabric.device)
        with fabric.autocast():  # not through Fabric's wrapper, which rounds prompt coordinates to bf16
            logits = model(batch)
        value = loss(upsample_logits(logits, batch.images.shape[-1]), batch) * (len(batch) / images)
        if not bool(value.isfinite()):
            return math.nan  # nothing to learn from; the caller says which images
        fabric.backward(value)
        total += float(value.detach())
    if penalty is not None:
        value = penalty()
        fabric.backward(value)
        total += float(value.detach())
    return total


def _names(batches: list[Batch]) -> str:
    return ", ".join(name for batch in batches for name in batch.names)


def _copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _groups(batches: Any, size: int) -> Iterator[list[Batch]]:
    """Yields lists of `size` consecutive batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
