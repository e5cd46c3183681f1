"""The training loop on a stand-in for a model: one convolution, so that every number can be checked."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from samtune.config.sections import Train
from samtune.errors import NonFiniteError
from samtune.models.sam.model import upsample_logits
from samtune.run.fit import Event, FitResult, Keeper, Watch, fit
from samtune.run.updates import Objective, rate
from samtune.tasks.masks.losses import dice_bce
from samtune.types import Batch

SIDE = 16


class Toy(nn.Module):
    """(B, 3, S, S) pictures to (B, 1, S/4, S/4) logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, kernel_size=4, stride=4)

    def forward(self, batch: Batch) -> Tensor:
        return self.conv(batch.images.float() / 255 - 0.5)


class ToyLoaders:
    """Batches of coarse noise whose bright half is the foreground; remembers the epochs it was set to."""

    def __init__(self, images: int, *, batch: int) -> None:
        generator = torch.Generator().manual_seed(1)
        cells = torch.randint(0, 256, (images, 3, SIDE // 4, SIDE // 4), generator=generator, dtype=torch.uint8)
        pictures = cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        masks = pictures.float().mean(dim=1, keepdim=True) > 128
        self.all = self.train = [
            Batch(
                images=pictures[start : start + batch],
                masks=masks[start : start + batch],
                sizes_input=((SIDE, SIDE),) * len(pictures[start : start + batch]),
                names=tuple(f"i{n}" for n in range(start, min(start + batch, images))),
            )
            for start in range(0, images, batch)
        ]
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        self.epochs.append(epoch)
        self.train = self.all[skip:]


def scripted(*values: float) -> Callable[[], Any]:
    """Returns a `validate` that reports these mDice values, then the last one for ever."""
    remaining: Iterator[float] = iter(values)
    last = [math.nan]

    def validate() -> Any:
        last[0] = next(remaining, last[0])
        return SimpleNamespace(choice=last[0], values={"mDice": last[0], "mIoU": last[0] / 2})

    return validate


def train(
    model: Toy,
    loaders: ToyLoaders,
    optimisation: Train,
    *,
    validate: Callable[[], Any] | None = None,
    loss: Any = dice_bce,
    precision: Any = "32-true",
    keeper: Keeper | None = None,
) -> tuple[FitResult, list[Event]]:
    events: list[Event] = []
    result = fit(
        model,  # type: ignore[arg-type]
        dict(model.named_parameters()),
        loaders,  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1, precision=precision),
        objective=Objective(lambda low, batch: loss(upsample_logits(low, SIDE), batch)),
        optimisation=optimisation,
        watch=Watch(events.append, validate or scripted(0.5), keeper),
    )
    return result, events


def of_split(events: list[Event], split: str, name: str) -> list[Any]:
    return [event[name] for event in events if event["split"] == split]


def test_the_rate_warms_up_then_falls_as_a_cosine() -> None:
    plan = Train(epochs=1, lr=0.8, warmup=0.2, min_lr=0.2)
    rates = [rate(plan, step, 20) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])  # 4 steps of warm-up end at the peak
    assert rates[12] == pytest.approx(0.5)  # half way down
    assert rates[20] == pytest.approx(0.2)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rate(Train(epochs=1, lr=0.8, warmup=0.0), 0, 20) == 0.8
    assert rate(Train(epochs=1, lr=0.8, warmup=1.0), 19, 20) == 0.8


def test_events_tell_steps_epochs_rates_and_losses() -> None:
    loaders = ToyLoaders(6, batch=2)
    plan = Train(epochs=2, lr=0.1, warmup=0.0)
    result, events = train(Toy(), loaders, plan, validate=scripted(0.25, 0.75))
    assert [event["split"] for event in events] == ["train"] * 3 + ["val"] + ["train"] * 3 + ["val"]
    assert of_split(events, "train", "step") == [1, 2, 3, 4, 5, 6]
    assert of_split(events, "train", "epoch") == [1, 1, 1, 2, 2, 2]
    assert of_split(events, "train", "lr") == [rate(plan, step, 6) for step in range(6)]
    assert of_split(events, "val", "step") == [3, 6]
    assert of_split(events, "val", "mDice") == [0.25, 0.75]
    assert of_split(events, "val", "mIoU") == [0.125, 0.375]
    assert all(rate > 0 for rate in of_split(events, "train", "images_per_s"))
    assert (result.steps, result.best_epoch, result.best_value, result.skipped) == (6, 2, 0.75, 0)
    assert loaders.epochs == [0, 1]


def test_the_first_loss_is_that_of_the_model_and_training_lowers_it() -> None:
    model, loaders = Toy(), ToyLoaders(4, batch=4)
    (batch,) = loaders.train
    logits = nn.functional.interpolate(model(batch), (SIDE, SIDE), mode="bilinear", align_corners=False)
    first = float(dice_bce(logits, batch).detach())
    _, events = train(model, loaders, Train(epochs=30, lr=0.05))
    losses = of_split(events, "train", "loss")
    assert losses[0] == pytest.approx(first, abs=1e-6)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("images", [12, 11])  # 11: the last batch of the update is smaller
def test_accumulation_equals_a_bigger_batch(images: int) -> None:
    plan = Train(epochs=3, lr=0.01, weight_decay=0.1)
    one, several = Toy(), Toy()
    _, big = train(one, ToyLoaders(images, batch=6), plan)
    _, small = train(several, ToyLoaders(images, batch=2), plan.model_copy(update={"accumulate": 3}))
    assert of_split(small, "train", "step") == of_split(big, "train", "step")
    assert of_split(small, "train", "loss") == pytest.approx(of_split(big, "train", "loss"), abs=1e-6)
    assert torch.allclose(several.conv.weight, one.conv.weight, atol=1e-6)


def test_the_last_update_of_an_epoch_may_be_smaller() -> None:
    result, events = train(Toy(), ToyLoaders(5, batch=1), Train(epochs=2, accumulate=2))
    assert result.steps == 6
    assert of_split(events, "val", "step") == [3, 6]


def test_the_best_epoch_is_restored() -> None:
    loaders, plan = ToyLoaders(4, batch=4), Train(epochs=4, lr=0.1)
    model, seen = Toy(), []
    values = scripted(0.2, 0.9, 0.9, 0.1)

    def validate() -> Any:
        seen.append(model.conv.weight.detach().clone())
        return values()

    result, _ = train(model, loaders, plan, validate=validate)
    assert (result.steps, result.best_epoch, result.best_value) == (4, 2, 0.9)  # of equals the earlier one
    assert torch.equal(model.conv.weight, seen[1])
    assert not torch.equal(model.conv.weight, seen[3])


def test_nan_is_never_the_best() -> None:
    result, _ = train(Toy(), ToyLoaders(2, batch=2), Train(epochs=3), validate=scripted(math.nan, 0.1, math.nan))
    assert (result.best_epoch, result.best_value) == (2, 0.1)


def test_patience_stops_and_steps_limit() -> None:
    loaders = ToyLoaders(6, batch=2)
    patient = Train(epochs=50, patience=2)
    result, events = train(Toy(), loaders, patient, validate=scripted(0.1, 0.5, 0.4, 0.5))
    assert (result.best_epoch, of_split(events, "val", "epoch")) == (2, [1, 2, 3, 4])
    result, events = train(Toy(), loaders, Train(epochs=50, steps=4))
    assert result.steps == 4
    assert of_split(events, "train", "epoch") == [1, 1, 1, 2]
    assert of_split(events, "val", "step") == [3, 4]  # validated also where the limit cut an epoch


def broken_on(*names: str) -> Any:
    """A loss that is NaN on batches with one of these images."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        factor = math.nan if set(names) & set(batch.names) else 1.0
        return dice_bce(logits, batch) * factor

    return loss


def test_an_update_without_a_finite_loss_is_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy()
    weights: list[Tensor] = []

    def watched(logits: Tensor, batch: Batch) -> Tensor:
        weights.append(model.conv.weight.detach().clone())
        return broken_on("i2")(logits, batch)

    with caplog.at_level(logging.WARNING, logger="samtune.run.updates"):
        result, events = train(model, ToyLoaders(6, batch=2), Train(epochs=1), loss=watched)
    assert (result.steps, result.skipped) == (3, 1)
    assert [math.isnan(loss) for loss in of_split(events, "train", "loss")] == [False, True, False]
    (message,) = caplog.messages
    assert message.startswith("update skipped: loss nan")
    assert message.endswith("on i2, i3")
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert bool(model.conv.weight.isfinite().all())


def test_an_update_without_a_finite_gradient_is_skipped() -> None:
    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return (logits * 0).abs().sqrt().sum()  # 0, but its gradient is 0 * inf

    model = Toy()
    before = model.conv.weight.detach().clone()
    result, events = train(model, ToyLoaders(2, batch=2), Train(epochs=2), loss=loss)
    assert (result.skipped, of_split(events, "train", "loss")) == (2, [0.0, 0.0])
    assert torch.equal(model.conv.weight, before)


def test_the_third_skipped_update_in_a_row_stops() -> None:
    loaders = ToyLoaders(8, batch=1)
    result, _ = train(Toy(), loaders, Train(epochs=1), loss=broken_on("i1", "i2", "i4", "i5"))
    assert result.skipped == 4  # never three in a row
    with pytest.raises(NonFiniteError, match=r"3 updates in a row .*last images were i3.*Lower train.lr"):
        train(Toy(), loaders, Train(epochs=1), loss=broken_on("i1", "i2", "i3"))


def test_gradients_are_clipped() -> None:
    def steep(logits: Tensor, batch: Batch) -> Tensor:
        return 1e6 * logits.sum()

    moved = {}
    for clip in (1e-9, None):
        model = Toy()
        before = model.conv.weight.detach().clone()
        plan = Train(epochs=1, lr=0.1, warmup=0.0, weight_decay=0.0, clip=clip)
        train(model, ToyLoaders(2, batch=2), plan, loss=steep)
        moved[clip] = float((model.conv.weight - before).abs().max().detach())
    assert moved[None] == pytest.approx(0.1, rel=1e-3)  # the first step of Adam is the rate, whatever the gradient,
    assert moved[1e-9] < 0.01  # unless it is far below Adam's epsilon


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_same_start_gives_the_same_run(optimizer: Any) -> None:
    plan = Train(epochs=2, lr=0.05, optimizer=optimizer)
    runs = [train(Toy(), ToyLoaders(6, batch=2), plan)[1] for _ in range(2)]
    assert of_split(runs[0], "train", "loss") == of_split(runs[1], "train", "loss")


def test_decay_is_part_of_the_gradient_in_adam_only() -> None:
    def flat(logits: Tensor, batch: Batch) -> Tensor:
        return logits.sum() * 0

    shrunk = {}
    for optimizer in ("adam", "adamw"):
        model = Toy()
        before = model.conv.weight.detach().clone()
        plan = Train(
            epochs=1,
            lr=0.01,
            warmup=0.0,
            weight_decay=0.5,
            clip=None,
            optimizer=optimizer,  # type: ignore[arg-type]
        )
        train(model, ToyLoaders(1, batch=1), plan, loss=flat)
        shrunk[optimizer] = (before - model.conv.weight.detach()), before
    change, before = shrunk["adamw"]
    assert torch.allclose(change, 0.005 * before, atol=1e-7)
    change, before = shrunk["adam"]
    assert torch.allclose(change, 0.01 * before.sign(), atol=1e-5)


def test_bf16_trains_fp32_weights() -> None:
    seen: list[torch.dtype] = []

    class Watched(Toy):
        def forward(self, batch: Batch) -> Tensor:
            logits = super().forward(batch)
            seen.append(logits.dtype)
            return logits

    model = Watched()
    _, events = train(model, ToyLoaders(4, batch=4), Train(epochs=30, lr=0.05), precision="bf16-mixed")
    losses = of_split(events, "train", "loss")
    assert set(seen) == {torch.bfloat16}
    assert model.conv.weight.dtype == torch.float32
    assert losses[-1] < losses[0] - 0.1


def test_without_validation_the_last_epoch_stays() -> None:
    model = Toy()
    events: list[Event] = []
    result = fit(
        model,  # type: ignore[arg-type]
        dict(model.named_parameters()),
        ToyLoaders(4, batch=2),  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1),
        objective=Objective(lambda low, batch: dice_bce(upsample_logits(low, SIDE), batch)),
        optimisation=Train(epochs=3),
        watch=Watch(events.append),
    )
    assert result.best_epoch == 3
    assert math.isnan(result.best_value)
    assert {event["split"] for event in events} == {"train"}
    twin = Toy()
    train(twin, ToyLoaders(4, batch=2), Train(epochs=3), validate=scripted(0.1, 0.2, 0.3))
    assert torch.equal(model.conv.weight, twin.conv.weight)


def test_the_moving_average_is_what_is_validated_and_kept() -> None:
    model, plain = Toy(), Toy()
    seen: list[Tensor] = []

    def validate() -> Any:
        seen.append(model.conv.weight.detach().clone())
        return SimpleNamespace(choice=0.5 + len(seen), values={"mDice": 0.5})

    plan = Train(epochs=2, ema=0.9)
    train(model, ToyLoaders(4, batch=2), plan, validate=validate)
    train(plain, ToyLoaders(4, batch=2), plan.model_copy(update={"ema": None}), validate=scripted(0.1, 0.2))
    assert torch.equal(model.conv.weight, seen[-1])
    start = Toy().conv.weight
    far, near = (plain.conv.weight - start).norm(), (model.conv.weight - start).norm()
    assert 0 < near < far  # the average lags behind the last step


def test_batches_are_mixed_by_the_number_of_the_pass() -> None:
    passes: list[int] = []

    def mix(batch: Batch, number: int) -> Batch:
        passes.append(number)
        return batch

    model = Toy()
    fit(
        model,  # type: ignore[arg-type]
        dict(model.named_parameters()),
        ToyLoaders(6, batch=2),  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1),
        objective=Objective(lambda low, batch: dice_bce(upsample_logits(low, SIDE), batch), mix=mix),
        optimisation=Train(epochs=2, accumulate=2),
        watch=Watch(lambda _: None),
    )
    assert passes == list(range(6))


def test_validation_can_be_rarer_than_epochs() -> None:
    plan = Train(epochs=5, validate_every=2)
    result, events = train(Toy(), ToyLoaders(4, batch=2), plan, validate=scripted(0.1, 0.3, 0.2))
    assert of_split(events, "val", "epoch") == [2, 4, 5]  # the last one always
    assert result.best_epoch == 4
