"""A training that goes on is the training that was not cut off: values, choices, events, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from test_training import SIDE, Toy, ToyLoaders, scripted
from torch import Tensor, nn

from samtune.base.signals import Stopped
from samtune.config.sections import Train
from samtune.errors import CheckpointError, DiskError, OutOfMemoryError
from samtune.models.sam.model import upsample_logits
from samtune.run.checkpoints import keep
from samtune.run.checkpoints.keep import RunKeeper
from samtune.run.checkpoints.state import TrainState
from samtune.run.fit import Event, FitResult, Keeper, Watch, fit
from samtune.run.updates import Objective
from samtune.tasks.masks.losses import dice_bce
from samtune.types import Batch


class Dropping(Toy):
    """With dropout, which draws from the global generator."""

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.dropout(super().forward(batch), 0.3, self.training)


@dataclass
class Memory:
    """Keeps copies in memory; asks to end after a number of saves."""

    start: TrainState | None = None
    end_after: int = 10**9
    kept: list[TrainState] = field(default_factory=list)

    def due(self) -> bool:
        return True

    def save(self, state: TrainState) -> None:
        self.kept.append(deepcopy(state))

    def asked_to_end(self) -> bool:
        return len(self.kept) >= self.end_after

    def end(self) -> None:
        raise Stopped(15)


PLAN = Train(epochs=4, lr=0.1, accumulate=2, ema=0.9, warmup=0.2)
VALUES = (0.5, 0.7, 0.6, 0.65)  # of the epochs
LOADERS = (10, 2)  # images, batch: 5 passes, 3 updates an epoch


def run(
    keeper: Keeper | None, *, plan: Train = PLAN, loss: Any = None, validated: int = 0
) -> tuple[FitResult, Toy, list[Event]]:
    """Trains; with a state to start from, `validated` epochs were validated before."""
    torch.manual_seed(0 if keeper is None or keeper.start is None else 99)  # whatever a new process has
    events: list[Event] = []
    model = Dropping()
    task: Callable[..., Tensor] = loss or (lambda low, batch: dice_bce(upsample_logits(low, SIDE), batch))
    result = fit(
        model,
        dict(model.named_parameters()),
        ToyLoaders(LOADERS[0], batch=LOADERS[1]),  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1),
        objective=Objective(task),
        optimisation=plan,
        watch=Watch(events.append, scripted(*VALUES[validated:]), keeper),
    )
    return result, model, events


@pytest.mark.parametrize("saves", range(1, 16))
def test_from_every_state_the_training_ends_the_same(saves: int) -> None:
    whole = Memory()
    expected, model, events = run(whole)
    start = whole.kept[saves - 1]
    resumed = Memory(start=start)
    result, second, later = run(resumed, validated=start.progress.epoch - 1)
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), model.parameters(), strict=True))
    assert (result.steps, result.best_epoch, result.best_value) == (12, 2, 0.7)
    assert (expected.best_epoch, expected.best_value) == (2, 0.7)
    told, again = (
        [(event["step"], event["split"], event.get("loss"), event.get("mDice")) for event in found]
        for found in (events, later)
    )
    assert again == told[len(told) - len(again) :]
    for name, value in whole.kept[-1].values.items():
        assert torch.equal(resumed.kept[-1].values[name], value)
    for name, value in whole.kept[-1].optimizer.items():
        assert torch.equal(resumed.kept[-1].optimizer[name], value)
    assert whole.kept[-1].progress.finished


def test_asked_to_end_it_saves_and_ends_after_the_step() -> None:
    keeper = Memory(end_after=4)
    with pytest.raises(Stopped):
        run(keeper)
    assert keeper.kept[-1].progress.step == 4  # asked after three steps and the end of an epoch


def test_more_epochs_go_on_from_the_end() -> None:
    keeper = Memory()
    run(keeper)
    result, _, events = run(Memory(start=keeper.kept[-1]), plan=PLAN.model_copy(update={"epochs": 5}))
    assert result.steps == 15
    assert [event["step"] for event in events if event["split"] == "train"] == [13, 14, 15]


def test_fewer_epochs_end_at_once_with_the_best_so_far() -> None:
    keeper = Memory()
    run(keeper)
    state = next(state for state in keeper.kept if (state.progress.epoch, state.progress.done) == (3, 2))
    result, _, events = run(Memory(start=state), plan=PLAN.model_copy(update={"epochs": 2}), validated=2)
    assert (result.steps, result.best_epoch) == (8, 2)
    assert [event["split"] for event in events] == ["val"]


def test_an_error_in_a_step_saves_the_state_before_it() -> None:
    calls = 0

    def failing(low: Tensor, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("broken")
        return dice_bce(upsample_logits(low, SIDE), batch)

    keeper = Memory()
    with pytest.raises(RuntimeError, match="broken"):
        run(keeper, loss=failing)
    _, model, _ = run(Memory(start=keeper.kept[-1]), validated=1)
    _, whole, _ = run(None)
    assert keeper.kept[-1].progress.step == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_state_of_another_selection_is_refused() -> None:
    keeper = Memory()
    run(keeper)
    state = keeper.kept[-1]
    other = TrainState(**{**vars(state), "values": {"conv.weight": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match=r"another selection: of conv\.bias it has nothing, here trains"):
        run(Memory(start=other))


class Short:
    """A loss that runs out of memory with more than `most` images."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, list[int]()

    def __call__(self, low: Tensor, batch: Batch) -> Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return dice_bce(upsample_logits(low, SIDE), batch)


def test_out_of_memory_says_which_batch_fits() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run(None, plan=Train(epochs=1, batch=2, accumulate=2, lr=0.1), loss=Short(1))
    message = str(caught.value)
    assert message.startswith("out of memory in step 1 with 2 images per forward pass (peak ")
    assert message.endswith(
        "Tried to allocate 2 GiB.). 1 fit: set train.batch=1 train.accumulate=4, or train.batch=auto."
    )


def test_out_of_memory_with_one_image_says_what_else_helps() -> None:
    with pytest.raises(OutOfMemoryError, match=r"Not even one image fits: lower model\.image_size"):
        run(None, plan=Train(epochs=1, batch="auto", lr=0.1), loss=Short(0))


def test_auto_takes_parts_that_fit_and_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Train(epochs=2, batch="auto", accumulate=2, lr=0.1)
    short = Short(1)
    keeper = Memory()
    monkeypatch.setattr(Dropping, "forward", Toy.forward)  # dropout draws other numbers for other shapes
    _, parts, events = run(keeper, plan=plan, loss=short)
    assert short.seen.count(2) == 1  # tried once
    assert keeper.kept[-1].progress.part == 1
    _, whole, expected = run(None, plan=plan.model_copy(update={"batch": 2}))
    assert len(events) == len(expected)
    for found, wanted in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_saving_is_rare_enough_to_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = RunKeeper(tmp_path, {})
    now = 1000.0
    monkeypatch.setattr(keep.time, "monotonic", lambda: now)
    keeper._saved, keeper._cost = now, 0.1
    now += keep.SECONDS - 1
    assert not keeper.due()
    now += 2
    assert keeper.due()
    keeper._cost = 4.0  # a large model on a slow disk: 200 s apart
    assert not keeper.due()
    now += 3 * keep.SECONDS
    assert keeper.due()


def keeper_of(folder: Path) -> RunKeeper:
    found = RunKeeper(folder, {"base": "b"})
    found.read()
    return found


def test_the_last_two_are_kept_with_the_best_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "SECONDS", 0.0)
    monkeypatch.setattr(keep, "SHARE", 0)
    seen: list[set[str]] = []
    real = RunKeeper._tidy

    def tidy(keeper: RunKeeper) -> None:
        real(keeper)
        seen.append({path.name for path in (tmp_path / "checkpoints").iterdir()} - {"LATEST"})

    monkeypatch.setattr(RunKeeper, "_tidy", tidy)
    _, model, _ = run(keeper_of(tmp_path))
    assert seen[1] == {"step-000001", "step-000002"}
    assert seen[5] == {"step-000004", "step-000005", "best-000003"}
    assert seen[-1] == {"step-000012-3", "best-000006"}  # finished: one is enough
    _, again, events = run(keeper_of(tmp_path))
    assert events == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_on_a_full_disk_the_older_ones_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "SECONDS", 0.0)
    monkeypatch.setattr(keep, "SHARE", 0)
    keeper, tries = keeper_of(tmp_path), 0
    real = RunKeeper._write

    def full(self: RunKeeper, state: TrainState) -> str:
        nonlocal tries
        tries += state.progress.step == 3
        if state.progress.step == 3 and len(list((tmp_path / "checkpoints").glob("step-*"))) > 1:
            raise DiskError("full")
        return real(self, state)

    monkeypatch.setattr(RunKeeper, "_write", full)
    run(keeper)
    assert tries > 1
