"""A scoring pass that goes on, or is shared, has the sums of one that is not; a loss that draws draws the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_model

from samtune.base.share import Share
from samtune.scoring.score import PartialScores, ScoreLoss, score
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import ContrastiveLoss, task_loss

BATCHES = [toy_batch(seed=seed) for seed in range(4)]
LOSSES: dict[str, Callable[[], ScoreLoss]] = {
    "task": lambda: task_loss(dice_bce),
    "contrastive": lambda: ContrastiveLoss(cells=6, temperature=0.1, seed=0),  # of 16 that an image has
}


@dataclass
class Kept:
    start: PartialScores | None = None
    kept: list[PartialScores] = field(default_factory=list)

    def offer(self, make: Callable[[], PartialScores]) -> None:
        found = make()
        copies = {name: value.clone() for name, value in found.sums.items()}
        squares = found.squares and {name: value.clone() for name, value in found.squares.items()}
        self.kept.append(PartialScores(found.taken, found.counted, found.skipped, copies, squares))


@pytest.mark.parametrize("options", [{}, {"squares": True}, {"per": "sample", "squares": True}])
@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_sums_are_the_same(loss: str, options: dict[str, Any], taken: int) -> None:
    def run(keeper: Kept) -> Any:
        return score(toy_model(), BATCHES, LOSSES[loss](), keeper=keeper, **options)

    whole = Kept()
    expected = run(whole)
    found = run(Kept(start=whole.kept[taken - 1]))
    assert [part.taken for part in whole.kept] == [1, 2, 3, 4]
    assert (found.batches, found.skipped, found.images_hash) == (
        expected.batches, expected.skipped, expected.images_hash,
    )  # fmt: skip
    assert all(torch.equal(found.sums[name], value) for name, value in expected.sums.items())
    if expected.squares is not None:
        assert all(torch.equal(found.squares[name], value) for name, value in expected.squares.items())


class Lone(Share):
    """One of several processes, which is told of the others' sums by nobody."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        pass

    def total(self, *values: float) -> list[float]:
        return list(values)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [2, 3])
def test_shares_add_up_to_the_whole(loss: str, count: int) -> None:
    model = toy_model(dtype=torch.float64)
    whole = score(model, BATCHES, LOSSES[loss]())
    shares = [score(model, BATCHES, LOSSES[loss](), share=Lone(number, count)) for number in range(count)]
    for name, expected in whole.sums.items():
        found = torch.stack([share.sums[name] for share in shares]).sum(0)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
