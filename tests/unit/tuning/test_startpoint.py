"""GRFT's regulariser: its value, its region, and that it pulls."""

from __future__ import annotations

import pytest
import torch
from toy import toy_model

from samtune.errors import ConfigError
from samtune.selection import select
from samtune.tuning import attach
from samtune.tuning.start import start_penalty


def test_it_is_the_sum_over_all_that_moved() -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="full"))
    starts = {name: p.detach().clone() for name, p in trainable.items()}
    squares = start_penalty(model, trainable, weight=0.5)
    absolute = start_penalty(model, trainable, weight=0.5, norm="l1")
    assert float(squares().detach()) == float(absolute().detach()) == 0
    with torch.no_grad():
        for index, parameter in enumerate(trainable.values()):
            parameter.add_(0.01 * (index % 3) - 0.01)
    moved = [(p.detach() - starts[name]).double() for name, p in trainable.items()]
    assert float(squares().detach()) == pytest.approx(0.5 * sum(float(d.square().sum()) for d in moved), rel=1e-5)
    assert float(absolute().detach()) == pytest.approx(0.5 * sum(float(d.abs().sum()) for d in moved), rel=1e-5)


def test_its_gradient_points_to_the_start() -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="linear"))
    penalty = start_penalty(model, trainable, weight=2.0)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(0.25)
    penalty().backward()
    assert all(torch.allclose(p.grad, torch.full_like(p, 2 * 2 * 0.25)) for p in trainable.values())


@pytest.mark.parametrize(
    ("blocks", "parts"),
    [(0, {"patch_embed"}), (1, {"patch_embed", "block 1"}), (2, {"patch_embed", "block 0", "block 1"})],
)
def test_a_region_is_the_last_blocks_patch_embedding_and_decoder(blocks: int, parts: set[str]) -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="full"))
    penalty = start_penalty(model, trainable, weight=1.0, blocks=blocks)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(1.0)
    penalty().backward()
    labels, roles = model.parts(), model.roles()
    pulled = {name for name, p in trainable.items() if p.grad is not None}
    assert pulled == {n for n in trainable if labels[n] in parts or roles[n] == "decoder"}


def test_nothing_in_the_region_is_no_pull() -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="partial", decoder=False))
    assert float(start_penalty(model, trainable, weight=1.0, blocks=0)().detach()) == 0


def test_more_blocks_than_there_are() -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="linear"))
    with pytest.raises(ConfigError, match=r"tune\.start\.blocks is 3, but toy has 2 blocks: that is the largest L"):
        start_penalty(model, trainable, weight=1.0, blocks=3)


def test_added_modules_have_no_start() -> None:
    model = toy_model()
    trainable = attach(model, select(model, None, name="lora"))
    with pytest.raises(ConfigError, match=r"lora.* is added and has none.*Set tune\.start\.weight=0"):
        start_penalty(model, trainable, weight=1.0)
