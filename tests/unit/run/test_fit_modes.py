"""What `fit` does around an update: the mode that the model is in, and what a skipped update leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from samtune.config.sections import Train
from samtune.run.fit import Event, Watch, fit
from samtune.run.updates import Objective
from samtune.tuning.ema import Ema
from samtune.types import Batch


class Toy(nn.Module):
    """The mean of each picture through a linear layer and dropout; remembers its modes, the model's and dropout's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(3, 4), nn.Dropout(0.5)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, batch: Batch) -> Tensor:
        self.modes.append((self.training, self.dropout.training))
        return self.dropout(self.linear(batch.images.float().mean(dim=(2, 3)) / 255))


class ToyLoaders:
    """Three batches of one picture."""

    def __init__(self) -> None:
        pictures = torch.randint(0, 256, (3, 1, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        self.train = [Batch(picture, mask, ((8, 8),), (f"i{n}",)) for n, picture in enumerate(pictures)]

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        pass


def run(
    model: Toy, optimisation: Train, *, bad: str = "", on_event: Callable[[Event], None] = id, validate: Any = None
) -> None:
    def loss(output: Tensor, batch: Batch) -> Tensor:
        return output.square().sum() * (math.nan if bad in batch.names else 1.0)

    fit(
        model,
        dict(model.named_parameters()),
        ToyLoaders(),  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1),
        objective=Objective(loss),
        optimisation=optimisation,
        watch=Watch(on_event, validate),
    )


def test_every_epoch_trains_in_training_mode_whatever_was_before() -> None:
    """Dropout and drop path act in it alone."""
    model = Toy().eval()  # as scoring and the evaluation before leave it

    def validate() -> Any:
        model.eval()
        return SimpleNamespace(choice=0.5, values={"top1": 0.5})

    run(model, Train(epochs=3), validate=validate)
    assert model.modes == [(True, True)] * 9


def test_a_skipped_update_is_no_value_of_the_moving_average() -> None:
    model = Toy()
    model.dropout.p = 0.0
    twin = Toy()
    average = Ema([*twin.parameters()], decay=0.9)
    losses = []

    def follow(event: dict[str, Any]) -> None:
        losses.append(event["loss"])
        if math.isfinite(event["loss"]):
            for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
                ours.data.copy_(theirs.data)
            average.update(event["step"] - 1)

    plan = Train(epochs=1, lr=0.1, warmup=0.0, ema=0.9)
    run(model, plan, bad="i1", on_event=follow)
    assert [math.isfinite(loss) for loss in losses] == [True, False, True]
    for value, expected in zip(model.parameters(), average.averages, strict=True):
        assert torch.equal(value, expected)
