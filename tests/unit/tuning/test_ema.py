"""The moving average of trained values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.selection import select
from samtune.tuning import attach
from samtune.tuning.ema import Ema
from samtune.types import Scores


def attached(family: str):
    """A model with a GPS selection, and its trained values."""
    model = toy_classifier(family)
    generator = torch.Generator().manual_seed(1)
    sums = {name: torch.randn(p.shape, generator=generator) for name, p in model.net.named_parameters()}
    selection = select(model, Scores(sums, 1, 0, "hash"), name="gps")
    return model, selection, attach(model, selection)


def train(trainable: dict[str, nn.Parameter], ema: Ema, model, *, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(labelled_batch(seed=step)), labelled_batch().labels).backward()
        optimizer.step()
        ema.update(step)


def test_update_is_the_formula() -> None:
    value = nn.Parameter(torch.tensor([1.0, -2.0]))
    ema, expected = Ema([value], 0.5), torch.tensor([1.0, -2.0])
    for step in range(20):
        with torch.no_grad():
            value.add_(step)
        ema.update(step)
        keep = min(0.5, (1 + step) / (10 + step))  # 0.1, 0.18, ... 0.5 from step 8
        expected = keep * expected + (1 - keep) * value.detach()
        torch.testing.assert_close(ema.averages[0], expected)  # after each: late averages have forgotten the warm-up


def test_averages_are_fp32_or_better() -> None:
    values = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    ema = Ema(values, 0.9)
    ema.update(0)
    assert [a.dtype for a in ema.averages] == [torch.float32, torch.float32, torch.float64]


@pytest.mark.parametrize("family", FAMILIES)
def test_swapped_shows_averages_and_gives_raw_values_back(family: str) -> None:
    model, selection, trainable = attached(family)
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    ema, batch = Ema(list(trainable.values()), 0.99), labelled_batch(seed=9)
    train(trainable, ema, model)
    raw = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    averages = dict(zip(trainable, ema.averages, strict=True))
    with torch.no_grad():
        raw_logits = model(batch)
        with ema.swapped():
            logits = model(batch)
            dense = {name: p.detach().clone() for name, p in model.net.named_parameters() if name in selection.entries}
        after_logits = model(batch)
    assert dense and not torch.equal(logits, raw_logits) and torch.equal(after_logits, raw_logits)
    for name, weight in dense.items():
        indices, frozen = selection.entries[name], torch.ones(weight.numel(), dtype=torch.bool)
        frozen[indices] = False
        assert torch.equal(weight.flatten()[indices], averages[name])
        assert torch.equal(weight.flatten()[frozen], base[name].flatten()[frozen])
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.net.state_dict().items())


def test_swapped_gives_raw_values_back_after_an_exception() -> None:
    model, _, trainable = attached("vit")
    ema = Ema(list(trainable.values()), 0.99)
    train(trainable, ema, model, steps=2)
    raw = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    with pytest.raises(RuntimeError, match="no"), ema.swapped():
        raise RuntimeError("no")
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.net.state_dict().items())


def test_training_goes_on_as_if_nothing_was_swapped() -> None:
    ends = []
    for swap in (False, True):
        model, _, trainable = attached("vit")
        ema = Ema(list(trainable.values()), 0.99)
        train(trainable, ema, model, steps=2)
        if swap:
            with ema.swapped():
                model.eval()(labelled_batch())
        train(trainable, ema, model, steps=2)
        ends.append(model.net.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_averages_reach_trained_values_only() -> None:
    model, selection, trainable = attached("vit")
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    ema = Ema(list(trainable.values()), 0.99)
    train(trainable, ema, model)
    with ema.swapped():
        assert all(torch.equal(p, a) for p, a in zip(trainable.values(), ema.averages, strict=True))
        state = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    for name in state.keys() - trainable.keys():
        assert torch.equal(state[name], base[name])
    for name, indices in selection.entries.items():
        moved = (state[name] != base[name]).flatten().nonzero().flatten()
        assert set(moved.tolist()) <= set(indices.tolist())
