"""In float64, two processes train as one does with the same batch, to 1e-9; averages and frozen norms included."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from job import in_children
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samtune.config.sections import Train
from samtune.data.loaders import EpochBatches, Loaders, _collated
from samtune.data.splits import Splits
from samtune.errors import ConfigError
from samtune.types import LabelledBatch

IMAGES, BATCH = 11, 4  # the last batch has three, of which the second of two processes gets one


class Pictures(Dataset[int]):
    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        pass


def collate(items: list[int]) -> LabelledBatch:
    images = [torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(i)) for i in items]
    return LabelledBatch(torch.stack(images), torch.tensor([i % 3 for i in items]), tuple(f"i{i}" for i in items))


class Net(nn.Module):
    """A convolution, a norm that stands still, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.double()

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, batch: LabelledBatch) -> Tensor:
        hidden = self.norm(self.conv(batch.images.double() / 255)).relu()
        return self.linear(hidden.mean(dim=(2, 3)))


def trained(rank: int, count: int, port: int, accumulate: int, mixed: bool, out: Path) -> None:
    from samtune.base.share import Share
    from samtune.run.fit import Watch, fit
    from samtune.run.prepare import open_fabric
    from samtune.run.updates import Objective

    os.environ.update(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
    fabric = open_fabric("cpu", "32-true")
    batches = EpochBatches(IMAGES, BATCH, seed=1)
    data: Any = DataLoader(Pictures(), batch_sampler=batches, collate_fn=partial(_collated, collate))
    loaders = Loaders(data, data, None, data, Splits([], [], []))
    if not mixed:
        loaders.divide(Share(rank, count).part)

    def mix(batch: LabelledBatch, number: int) -> LabelledBatch:
        return LabelledBatch((batch.images + batch.images.flip(0)) // 2, batch.labels, batch.names)

    model = Net()
    fit(
        model,
        dict(model.named_parameters()),
        loaders,
        fabric=fabric,
        objective=Objective(
            lambda logits, batch: nn.functional.cross_entropy(logits, batch.labels),
            penalty=lambda: 0.01 * model.linear.weight.square().sum(),
            mix=mix if mixed else None,
        ),
        optimisation=Train(epochs=3, batch=BATCH, accumulate=accumulate, lr=0.05, ema=0.8, clip=0.1),
        watch=Watch(lambda _: None),
    )
    torch.save(model.state_dict(), out / f"{rank}.pt")


def run(count: int, out: Path, **options: Any) -> list[dict[str, Tensor]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    out.mkdir()
    works: list[tuple[Callable[[], None], None]] = [
        (partial(trained, rank, count, port, out=out, **options), None) for rank in range(count)
    ]
    ends = in_children(works)
    assert [end.code for end in ends] == [0] * count, [end.said for end in ends]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("accumulate", "mixed"), [(1, False), (2, False), (1, True)])
def test_shares_train_as_the_whole(accumulate: int, mixed: bool, count: int, tmp_path: Path) -> None:
    (whole,) = run(1, tmp_path / "one", accumulate=accumulate, mixed=mixed)
    shares = run(count, tmp_path / "more", accumulate=accumulate, mixed=mixed)
    for name, value in whole.items():
        assert torch.allclose(shares[0][name], value, rtol=0, atol=1e-9), name
        assert all(torch.equal(shares[0][name], other[name]) for other in shares[1:])
    assert not torch.equal(whole["conv.weight"], Net().conv.weight)


def test_batch_statistics_can_not_be_shared() -> None:
    from samtune.run.prepare import divide

    class Measuring(Net):
        name = "measuring"

        def train(self, mode: bool = True) -> Net:
            return nn.Module.train(self, mode)  # type: ignore[return-value]

    with pytest.raises(ConfigError, match="measuring measures batch statistics, which several processes can't share"):
        divide(Measuring(), None, None, mixes=False)  # type: ignore[arg-type]
