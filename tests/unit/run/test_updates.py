"""The optimizer of a training: one call for all tensors where that is right, and the same numbers as one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from samtune.config.sections import Train
from samtune.run.checkpoints.state import TrainState, random_state
from samtune.run.updates import Objective, Updates, updates_in_one_call
from samtune.types import LabelledBatch

Apart = Callable[[], AbstractContextManager[None]]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}
BATCH = LabelledBatch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("i",))


class Net(nn.Module):
    """Weights whose gradient is contiguous and differs for each entry."""

    def __init__(self, layout: str = "contiguous") -> None:
        super().__init__()
        start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(LAYOUTS[layout](start))

    def forward(self, batch: LabelledBatch) -> Tensor:
        return (self.weight * torch.arange(48.0).view(4, 3, 2, 2).sin()).sum().sin()


def updates_of(net: Net, kind: str = "adamw") -> Updates:
    plan = Train(lr=0.01, weight_decay=0.1, optimizer=kind)
    goal = Objective(lambda output, batch: output)
    return Updates(Fabric(accelerator="cpu", devices=1), net, dict(net.named_parameters()), goal, plan, 9)


def make_three(updates: Updates) -> Tensor:
    for _ in range(3):
        updates.make([BATCH])
    return updates.trainable["weight"].detach()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Apart:
    """What makes optimizers that update one tensor after the other."""

    @contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("samtune.run.updates.updates_in_one_call", lambda parameters: False)
            yield

    return patched


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_state_of_one_call_for_each_tensor_goes_on_the_same_in_any_layout(
    kind: str, layout: str, apart: Apart
) -> None:
    """As states of versions before and of other devices do; moments that are read from a file are contiguous."""
    with apart():
        first = updates_of(Net(), kind)
    make_three(first)
    values, moments, _ = first.tensors()
    state = deepcopy(TrainState(first.progress, values, moments, None, None, random_state()))
    then = updates_of(Net(layout), kind)
    then.load(state)
    torch.testing.assert_close(make_three(then), make_three(first), rtol=1e-5, atol=1e-6)


def test_only_contiguous_tensors_of_a_cpu_are_updated_in_one_call() -> None:
    assert updates_in_one_call([torch.zeros(2), torch.zeros(2, 3)])
    assert not updates_in_one_call([torch.zeros(2), torch.zeros(2, 3).T])
    assert not updates_in_one_call([torch.zeros(2), torch.zeros(2, device="meta")])
