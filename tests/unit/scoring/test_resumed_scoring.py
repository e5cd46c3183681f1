"""A scoring pass that goes on has the sums of one that was not cut off, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from toy import toy_batch, toy_model

from samtune.scoring.score import PartialScores, score
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import task_loss

BATCHES = [toy_batch(seed=seed) for seed in range(4)]


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
def test_the_sums_are_the_same(options: dict[str, Any], taken: int) -> None:
    def run(keeper: Kept) -> Any:
        return score(toy_model(), BATCHES, task_loss(dice_bce), keeper=keeper, **options)

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
