"""`fit`: one loop, read from top to bottom, on Lightning Fabric, which gives device and precision.

Only what `attach` returned is trained, the best epoch by validation is restored, the test split is nowhere in sight.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from samtune.config.sections import Train
from samtune.data.loaders import Loaders
from samtune.errors import DiskError
from samtune.run.checkpoints.state import RandomState, Tensors, TrainState, random_state, set_random_state
from samtune.run.updates import Objective, Updates, copy_values
from samtune.types import AnyBatch

logger = logging.getLogger(__name__)

Event = dict[str, Any]


def total_steps(plan: Train, batches: int) -> int:
    """Returns the number of optimizer steps when an epoch has `batches` forward passes."""
    steps = plan.epochs * math.ceil(batches / plan.accumulate)
    return steps if plan.steps is None else min(steps, plan.steps)


class Keeper(Protocol):
    """Who keeps states of a training, and ends it when it is asked to."""

    @property
    def start(self) -> TrainState | None:
        """What to go on from; None to start anew."""

    def due(self) -> bool:
        """Tells whether it is time to save."""

    def save(self, state: TrainState) -> None:
        """Writes a state."""

    def asked_to_end(self) -> bool:
        """Tells whether the process shall end."""

    def end(self) -> None:
        """Ends the process by an exception."""


@dataclass(frozen=True)
class Validation:
    """Numbers of a validation by name, and the one that epochs are chosen by; as a report has them."""

    choice: float
    values: dict[str, float]


@dataclass(frozen=True)
class Watch:
    """What goes on beside the steps.

    Attributes:
        on_event: told of every step and every validation.
        validate: measures the model as it is; None keeps the last epoch.
        keeper: None keeps nothing.
    """

    on_event: Callable[[Event], None]
    validate: Callable[[], Validation] | None = None
    keeper: Keeper | None = None


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
    watch: Watch,
) -> FitResult:
    """Trains, validates after epochs, and leaves the model with the best epoch's weights.

    Args:
        model: attached, on Fabric's device; maps a batch to what the loss takes.
        optimisation: schedule and optimizer; `precision` and `checkpointing` of it are not looked at here.

    Raises:
        NonFiniteError: three updates in a row without a finite loss and gradient; the model has the best epoch's
            weights then too.
        OutOfMemoryError: see `Updates.make`.
    """
    plan = optimisation
    updates = Updates(fabric, model, trainable, objective, plan, total_steps(plan, len(loaders.train)))
    course = _Course(updates, watch)
    try:
        while not course.is_over():
            model.train()
            loaders.set_epoch(course.epoch - 1, skip=updates.progress.done * plan.accumulate)
            batches = iter(loaders.train)
            course.restore_random()
            began, left = time.monotonic(), max(0, updates.total - updates.progress.step)
            for group in itertools.islice(_groups(batches, plan.accumulate), left):
                value, lr, images = updates.make(group)
                began, speed = time.monotonic(), images / (time.monotonic() - began)  # loading the batches counts
                course.tell("train", loss=value, lr=lr, images_per_s=speed)
                course.keep()
            course.end_epoch()
        course.finish()
    except DiskError:  # a further file would not fit either
        raise
    except Exception:
        course.rescue()
        raise
    finally:  # an error too leaves the best epoch behind, never a broken one
        course.restore_best()
    now = updates.progress
    return FitResult(now.step, now.best_epoch, course.best_value, course.seconds, now.skipped)


class _Course:
    """Where a training is: what is told, validated, kept and chosen between its steps."""

    def __init__(self, updates: Updates, watch: Watch) -> None:
        self.updates, self.watch = updates, watch
        self.best: Tensors = self._copies()
        self._resume = None if watch.keeper is None else watch.keeper.start
        if self._resume is not None:
            updates.load(self._resume)
            self.best = self._resume.best or self.best
            self._set_random(self._resume.random)
        self._began = time.monotonic() - updates.progress.seconds
        self._random: RandomState = random_state()

    @property
    def epoch(self) -> int:
        return self.updates.progress.epoch

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def best_value(self) -> float:
        value = self.updates.progress.best_value
        return math.nan if value is None else value

    def is_over(self) -> bool:
        """Tells whether all steps are made and validated, or patience is at its end."""
        now, patience = self.updates.progress, self.updates.plan.patience
        out_of_patience = patience is not None and now.epoch - 1 - now.best_epoch >= patience
        return now.done == 0 and (now.step >= self.updates.total or out_of_patience)

    def restore_random(self) -> None:
        """Is called when the loader was opened, which draws a number: a state within an epoch is from after that."""
        if self._resume is not None and self._resume.progress.done:
            self._set_random(self._resume.random)
        self._resume = None

    def _set_random(self, state: RandomState) -> None:
        """Goes back to a state, which is the first process's; the others draw numbers of their own."""
        set_random_state(state)
        if number := self.updates.share.number:
            torch.manual_seed(int(np.random.SeedSequence((number, self.updates.progress.step)).generate_state(1)[0]))

    def tell(self, split: str, **values: float) -> None:
        """Reports values of this step."""
        self.watch.on_event({"step": self.updates.progress.step, "epoch": self.epoch, "split": split, **values})

    def keep(self) -> None:
        """Saves if it is time to; ends the process if it is asked to."""
        self._random = random_state()
        keeper = self.watch.keeper
        if keeper is None:
            return
        ending = self.updates.share.any(keeper.asked_to_end())  # all processes, or none
        if ending or keeper.due():
            self._save()
        if ending:
            self.updates.share.of_first(None)  # the others wait until it is saved: who starts them ends all with one
            keeper.end()

    def end_epoch(self) -> None:
        """Validates where that is due, keeps the best, goes to the next epoch."""
        now, plan, validate = self.updates.progress, self.updates.plan, self.watch.validate
        last = now.step >= self.updates.total
        if validate is None or last or now.epoch % plan.validate_every == 0:
            with self.updates.averaged():
                report = None if validate is None else validate()
                self._choose(report)
            if report is not None:
                self.tell("val", **report.values)
        self.updates.progress = replace(self.updates.progress, epoch=now.epoch + 1, done=0)
        self.keep()

    def finish(self) -> None:
        """Saves the end, from which merging, or more epochs, can go on."""
        if self.watch.keeper is not None:
            self._save(finished=True)

    def rescue(self) -> None:
        """Saves the state before the step that failed, if it is whole; what goes wrong now is only said.

        Asked to end, it ends: a signal to all processes of a group may be what made the step fail.
        """
        keeper = self.watch.keeper
        if keeper is None:
            return
        if self.updates.whole:
            try:
                self._save()
            except DiskError as err:
                logger.warning("%s", err)
        if keeper.asked_to_end():
            keeper.end()

    def _choose(self, report: Validation | None) -> None:
        """Keeps the weights of this epoch if it is better: the first of equals, never one that is NaN."""
        now, value = self.updates.progress, math.nan if report is None else report.choice
        if report is None or value > (-math.inf if math.isnan(self.best_value) else self.best_value):
            kept = None if math.isnan(value) else value
            self.updates.progress = replace(now, best_epoch=now.epoch, best_step=now.step, best_value=kept)
            self.best = self._copies()

    def _save(self, *, finished: bool = False) -> None:
        """Hands the state after the last whole step to the keeper."""
        assert self.watch.keeper is not None
        progress = replace(self.updates.progress, seconds=self.seconds, finished=finished)
        values, moments, averages = self.updates.tensors()
        best = self.best if progress.best_epoch else None
        self.watch.keeper.save(TrainState(progress, values, moments, averages, best, self._random))

    def restore_best(self) -> None:
        copy_values(self.updates.trainable, self.best)

    def _copies(self) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self.updates.trainable.items()}


def _groups(batches: Iterator[AnyBatch | None], size: int) -> Iterator[list[AnyBatch | None]]:
    """Yields lists of `size` consecutive batches; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group
