"""`fit`: one loop, read from top to bottom, on Lightning Fabric, which gives device and precision.

Only what `attach` returned is trained, the best epoch by validation is restored, the test split is nowhere in sight.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from samtune.config.sections import Train
from samtune.data.loaders import Loaders
from samtune.errors import NonFiniteError
from samtune.metrics.report import AnyReport
from samtune.tuning.ema import Ema
from samtune.tuning.start import Penalty
from samtune.types import AnyBatch, Mix, OutputLoss

logger = logging.getLogger(__name__)

Event = dict[str, Any]
MOST_SKIPPED = 3  # updates in a row


def total_steps(plan: Train, batches: int) -> int:
    """Returns the number of optimizer steps when an epoch has `batches` forward passes."""
    steps = plan.epochs * math.ceil(batches / plan.accumulate)
    return steps if plan.steps is None else min(steps, plan.steps)


def rate(plan: Train, step: int, total: int) -> float:
    """Returns the learning rate of a step (from 0) of `total`: a linear warm-up, then a cosine to `min_lr`."""
    warm = round(plan.warmup * total)
    if step < warm:
        return plan.lr * (step + 1) / warm
    progress = (step - warm) / max(total - warm, 1)
    return plan.min_lr + (plan.lr - plan.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Attributes:
        penalty: of `start_penalty`, added to the loss of every update.
        mix: changes a training batch, given the number of forward passes so far: mixup, cutmix.
    """

    loss: OutputLoss
    penalty: Penalty | None = None
    mix: Mix | None = None


@dataclass(frozen=True)
class FitResult:
    """What `fit` did.

    Attributes:
        best_epoch: the epoch whose weights the model has now, from 1; without validation the last.
        best_value: the first of its validation numbers (mDice, top1); NaN without validation.
        skipped: updates left out because a loss or gradient was not finite.
    """

    steps: int
    best_epoch: int
    best_value: float
    seconds: float
    skipped: int


def fit(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    loaders: Loaders,
    *,
    fabric: Fabric,
    objective: Objective,
    optimisation: Train,
    validate: Callable[[], AnyReport] | None,
    on_event: Callable[[Event], None],
) -> FitResult:
    """Trains, validates after epochs, and leaves the model with the best epoch's weights.

    Args:
        model: attached, on Fabric's device; maps a batch to what the loss takes.
        optimisation: schedule and optimizer; `batch`, `precision` and `checkpointing` of it are not looked at here.
        validate: returns the validation report of the model as it is; None keeps the last epoch.
        on_event: told of every step and every validation.

    Raises:
        NonFiniteError: three updates in a row without a finite loss and gradient; the model has the best epoch's
            weights then too.
    """
    parameters = list(trainable.values())
    total = total_steps(optimisation, len(loaders.train))
    updates = _Updates(fabric, model, parameters, objective, optimisation, total)
    start, best = time.monotonic(), _Best(parameters)
    try:
        for epoch in itertools.count(1):
            model.train()
            loaders.set_epoch(epoch - 1)
            began = time.monotonic()
            for batches in _groups(loaders.train, optimisation.accumulate):
                value, lr = updates.make(batches)
                images = sum(len(batch) for batch in batches)
                began, speed = time.monotonic(), images / (time.monotonic() - began)  # loading the batches counts
                now = {"step": updates.step, "epoch": epoch, "split": "train"}
                on_event({**now, "loss": value, "lr": lr, "images_per_s": speed})
                if updates.step >= total:
                    break
            if validate is None or updates.step >= total or epoch % optimisation.validate_every == 0:
                with updates.averaged():
                    report = None if validate is None else validate()
                    best.see(epoch, report)
                if report is not None:
                    on_event({"step": updates.step, "epoch": epoch, "split": "val", **report.values})
            if updates.step >= total or (optimisation.patience and epoch - best.epoch >= optimisation.patience):
                break
    finally:  # an error too leaves the best epoch behind, never a broken one
        best.restore()
    return FitResult(updates.step, best.epoch, best.value, time.monotonic() - start, updates.skipped)


class _Updates:
    """Makes the optimizer steps of a run and counts them."""

    def __init__(
        self, fabric: Fabric, model: nn.Module, parameters: list[nn.Parameter], goal: Objective, plan: Train, total: int
    ) -> None:
        self.fabric, self.model, self.goal, self.plan, self.total = fabric, model, goal, plan, total
        kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
        self.optimizer: Any = fabric.setup_optimizers(kind(parameters, lr=plan.lr, weight_decay=plan.weight_decay))
        self.ema = None if plan.ema is None else Ema(parameters, decay=plan.ema)
        self.step = self.passes = self.skipped = self.in_a_row = 0

    def make(self, batches: list[AnyBatch]) -> tuple[float, float]:
        """Makes one step of these batches; returns their loss and the learning rate."""
        lr, mix = rate(self.plan, self.step, self.total), self.goal.mix
        mixed = batches if mix is None else [mix(batch, self.passes + n) for n, batch in enumerate(batches)]
        self.passes += len(batches)
        value = self._accumulate(mixed)
        updated = self._update(value, batches, lr)
        self.in_a_row = 0 if updated else self.in_a_row + 1
        self.skipped += not updated
        if self.in_a_row >= MOST_SKIPPED:
            raise NonFiniteError(
                f"{self.in_a_row} updates in a row had no finite loss and gradient; the last images were "
                f"{_names(batches)}. Lower train.lr, or set train.precision=fp32."
            )
        if self.ema is not None and updated:
            self.ema.update(self.step)
        self.step += 1
        return value, lr

    def averaged(self) -> AbstractContextManager[None]:
        """Lends the moving average to the model, where there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def _accumulate(self, batches: list[AnyBatch]) -> float:
        """Runs forward and backward over the batches of one update; returns their loss per image, with the penalty."""
        total, images = 0.0, sum(len(batch) for batch in batches)
        for batch in batches:
            batch = batch.to(self.fabric.device)
            with self.fabric.autocast():  # not through Fabric's wrapper, which rounds prompt coordinates to bf16
                output = self.model(batch)
            value = self.goal.loss(output, batch) * (len(batch) / images)
            if not bool(value.isfinite()):
                return math.nan  # nothing to learn from; the caller says which images
            self.fabric.backward(value)
            total += float(value.detach())
        if self.goal.penalty is not None:
            value = self.goal.penalty()
            self.fabric.backward(value)
            total += float(value.detach())
        return total

    def _update(self, value: float, batches: list[AnyBatch], lr: float) -> bool:
        """Makes one optimizer step, unless the loss or the gradient is not finite; returns whether it did."""
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = lr
        with_gradient = [p for group in groups for p in group["params"] if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(with_gradient, math.inf if self.plan.clip is None else self.plan.clip))
        finite = math.isfinite(value) and math.isfinite(norm)
        if finite:
            self.optimizer.step()
        else:
            logger.warning("update skipped: loss %s, gradient norm %s on %s", value, norm, _names(batches))
        self.optimizer.zero_grad()
        return finite


class _Best:
    """The weights of the best epoch so far; of the last one where nothing is measured."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.epoch, self.value = parameters, 0, math.nan
        self._keep()

    def see(self, epoch: int, report: AnyReport | None) -> None:
        """Keeps the weights of an epoch if it is better: the first of equals, never one that is NaN."""
        value = math.nan if report is None else report.choice
        if report is None or value > (-math.inf if math.isnan(self.value) else self.value):
            self.epoch, self.value = epoch, value
            self._keep()

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)

    def _keep(self) -> None:
        self.kept = [p.detach().clone() for p in self.parameters]


def _names(batches: list[AnyBatch]) -> str:
    return ", ".join(name for batch in batches for name in batch.names)


def _groups(batches: Any, size: int) -> Iterator[list[AnyBatch]]:
    """Yields lists of `size` consecutive batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
