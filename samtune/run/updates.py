"""The optimizer steps of a training: forward and backward over the batches of a step, then one update, or none."""

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from samtune.base.machine import is_out_of_memory, peak_mib
from samtune.base.share import Share
from samtune.config.sections import Train
from samtune.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from samtune.run.checkpoints.state import Progress, Tensors, TrainState
from samtune.tuning.ema import Ema
from samtune.tuning.start import Penalty
from samtune.types import AnyBatch, Mix, OutputLoss

logger = logging.getLogger(__name__)

MOST_SKIPPED = 3  # updates in a row


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


def rate(plan: Train, step: int, total: int) -> float:
    """Returns the learning rate of a step (from 0) of `total`: a linear warm-up, then a cosine to `min_lr`."""
    warm = round(plan.warmup * total)
    if step < warm:
        return plan.lr * (step + 1) / warm
    progress = (step - warm) / max(total - warm, 1)
    return plan.min_lr + (plan.lr - plan.min_lr) * (1 + math.cos(math.pi * progress)) / 2


class Updates:
    """Makes the optimizer steps of a training, and counts them in `progress`."""

    def __init__(
        self, fabric: Fabric, model: nn.Module, trainable: Mapping[str, nn.Parameter], goal: Objective, plan: Train,
        total: int,
    ) -> None:  # fmt: skip
        self.fabric, self.model, self.goal, self.plan, self.total = fabric, model, goal, plan, total
        self.share = Share(fabric.global_rank, fabric.world_size, fabric.device)
        self.trainable = dict(trainable)
        parameters = list(trainable.values())
        kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
        fused = updates_in_one_call(parameters) or None
        optimizer = kind(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=fused)
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.ema = None if plan.ema is None else Ema(parameters, decay=plan.ema)
        self.progress = Progress()
        self.whole = True
        """False while an update is half made: then there is nothing to save."""

    def make(self, batches: list[AnyBatch | None]) -> tuple[float, float, int]:
        """Makes one step of these batches; returns their loss, the learning rate, and how many images they have.

        Of several processes each gives its part of the batches, None for none, and all get the same numbers.

        Raises:
            NonFiniteError: the third step in a row without a finite loss and gradient.
            OutOfMemoryError: a batch does not fit; with train.batch "auto", not even one image does.
        """
        now, mix = self.progress, self.goal.mix
        lr = rate(self.plan, now.step, self.total)
        own = [batch for batch in batches if batch is not None]
        if mix is not None:  # whole batches are mixed, then divided
            mixed = [mix(batch, now.passes + n) for n, batch in enumerate(own)]
            own = [part for batch in mixed for part in batch.split(self._each(batch))[self.share.number :][:1]]
        images = int(self.share.total(sum(len(batch) for batch in own))[0])
        value = self.share.total(self._accumulate_what_fits(own, images))[0]
        self._add_gradients()
        self.whole = False
        updated = self._update(value, own, lr)
        if self.ema is not None and updated:
            self.ema.update(now.step)
        self.progress = replace(
            self.progress,  # it may have a smaller part now
            step=now.step + 1,
            done=now.done + 1,
            passes=now.passes + len(batches),
            skipped=now.skipped + (not updated),
            in_a_row=0 if updated else now.in_a_row + 1,
        )
        self.whole = True
        if self.progress.in_a_row >= MOST_SKIPPED:
            raise NonFiniteError(
                f"{self.progress.in_a_row} updates in a row had no finite loss and gradient; the last images were "
                f"{_names(own)}. Lower train.lr, or set train.precision=fp32."
            )
        return value, lr, images

    def _each(self, batch: AnyBatch) -> int:
        """Returns the number of images of a whole batch that each process gets."""
        return -(-len(batch) // self.share.count)

    def _add_gradients(self) -> None:
        """Adds up the gradients of all processes: those of what has one in any of them."""
        if self.share.count == 1:
            return
        parameters = list(self.trainable.values())
        there = self.share.total(*(float(parameter.grad is not None) for parameter in parameters))
        reached = [parameter for parameter, processes in zip(parameters, there, strict=True) if processes]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.share.add([parameter.grad for parameter in reached if parameter.grad is not None])

    def averaged(self) -> AbstractContextManager[None]:
        """Lends the moving average to the model, where there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def tensors(self) -> tuple[Tensors, Tensors, Tensors | None]:
        """Returns values, optimizer and averages as `TrainState` has them; they are the live ones, no copies."""
        states = {name: self.optimizer.state.get(parameter, {}) for name, parameter in self.trainable.items()}
        moments = {f"{key}/{name}": value for name, state in states.items() for key, value in state.items()}
        values = {name: parameter.detach() for name, parameter in self.trainable.items()}
        averages = None if self.ema is None else dict(zip(self.trainable, self.ema.averages, strict=True))
        return values, moments, averages

    @torch.no_grad()
    def load(self, state: TrainState) -> None:
        """Goes back to a state.

        Raises:
            CheckpointError: it is of another selection.
        """
        self.progress = state.progress
        copy_values(self.trainable, state.values)
        if self.ema is not None and state.averages is not None:
            for name, average in zip(self.trainable, self.ema.averages, strict=True):
                average.copy_(state.averages[name])
        self.optimizer.state.clear()
        for key, value in state.optimizer.items():
            kind, _, name = key.partition("/")
            parameter = self.trainable[name]
            device = parameter.device if value.ndim else "cpu"  # its step counter stays on the CPU
            self.optimizer.state[parameter][kind] = value.to(device, copy=True)

    def _accumulate_what_fits(self, batches: list[AnyBatch], images: int) -> float:
        """Returns `_accumulate` of the batches, in smaller parts where memory asks for that and the user agreed."""
        while True:
            try:
                return self._accumulate(batches, images, self.progress.part)
            except Exception as err:
                if not is_out_of_memory(err):
                    raise
                reason = str(err).splitlines()[0]
            self.optimizer.zero_grad()  # outside of the block, which holds on to the failed pass
            part = self._halved(batches, self.progress.part)
            if part is None or self.plan.batch != "auto":
                raise OutOfMemoryError(self._advice(batches, reason))
            logger.warning("out of memory: from now on %d images per forward pass, as many per step as before", part)
            self.progress = replace(self.progress, part=part)

    def _halved(self, batches: list[AnyBatch], part: int | None) -> int | None:
        """Returns half of a number of images per pass, None being all of a batch; None where that is one."""
        most = max(len(batch) for batch in batches)
        most = most if part is None else min(part, most)
        return None if most == 1 else (most + 1) // 2

    def _advice(self, batches: list[AnyBatch], reason: str) -> str:
        """Words what does not fit, and what does: that is tried."""
        peak, most = peak_mib(self.fabric.device), max(len(batch) for batch in batches)
        said = f"out of memory in step {self.progress.step + 1} with {most} images per forward pass"
        said = f"{said} (peak {peak:,.0f} MiB; {reason})"
        part = self._halved(batches, self.progress.part)
        while part is not None and not self._fits(batches, part):
            part = self._halved(batches, part)
        if part is None:
            return f"{said}. Not even one image fits: lower model.image_size, or set train.checkpointing=true."
        times, whole = math.ceil(most / part) * self.plan.accumulate, part * self.share.count
        return f"{said}. {part} fit: set train.batch={whole} train.accumulate={times}, or train.batch=auto."

    def _fits(self, batches: list[AnyBatch], part: int) -> bool:
        """Tries passes of so many images; nothing is updated."""
        try:
            self._accumulate(batches, sum(len(batch) for batch in batches), part)
        except Exception as err:
            if not is_out_of_memory(err):
                raise
            return False
        finally:
            self.optimizer.zero_grad()
        return True

    def _accumulate(self, batches: list[AnyBatch], images: int, part: int | None) -> float:
        """Runs forward and backward over the batches of one update of so many `images`, in all processes.

        Returns:
            Their share of the loss per image; the first process adds the penalty, once for all.
        """
        total = 0.0
        for piece in (piece for batch in batches for piece in (batch.split(part) if part else [batch])):
            batch = piece.to(self.fabric.device)
            with self.fabric.autocast():  # not through Fabric's wrapper, which rounds prompt coordinates to bf16
                output = self.model(batch)
            value = self.goal.loss(output, batch) * (len(batch) / images)
            if not bool(value.isfinite()):
                return math.nan  # nothing to learn from; the caller says which images
            self.fabric.backward(value)
            total += float(value.detach())
        if self.goal.penalty is not None and self.share.first:
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
            names = _names(batches) or "images of another process"
            logger.warning("update skipped: loss %s, gradient norm %s on %s", value, norm, names)
        self.optimizer.zero_grad()
        return finite


def updates_in_one_call(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's fused Adam is right and faster: on a CPU a fifth of the time for hundreds of small tensors.

    There it takes gradient and moments to lie in memory as the tensor does, which those of a file, contiguous, do only
    beside a contiguous one.
    """
    return all(parameter.device.type == "cpu" and parameter.is_contiguous() for parameter in parameters)


@torch.no_grad()
def copy_values(trainable: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Writes values into what trains.

    Raises:
        CheckpointError: names or shapes differ.
    """
    found, wanted = ({n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} for tensors in (values, trainable))
    if found != wanted:
        name = next(n for n in sorted(found.keys() | wanted.keys()) if found.get(n) != wanted.get(n))
        raise CheckpointError(
            f"the checkpoint is of another selection: of {name} it has {found.get(name, 'nothing')}, here trains "
            f"{wanted.get(name, 'nothing')}."
        )
    for name, parameter in trainable.items():
        parameter.copy_(values[name])


def _names(batches: list[AnyBatch]) -> str:
    return ", ".join(name for batch in batches for name in batch.names)
