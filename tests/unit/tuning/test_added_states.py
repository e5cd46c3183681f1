"""Additions fold, save, load and copy: an attached model has the state dict of a plain one."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from added_cases import FOLDING, PAIRS, STAYING, additions_of, copied, hosted, net_of, output_of, same, train, tuned
from torch import nn
from toyvit import toy_classifier

from samtune.selection.selection import Addition, Selection
from samtune.tuning import attach, merge
from samtune.tuning.added import KINDS
from samtune.tuning.addition import Folding
from samtune.tuning.hooks import added_modules

# --- folding


@pytest.mark.parametrize(("kind", "net"), FOLDING)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_merged_is_tuned(kind: str, net: str, dtype: torch.dtype, tolerance: float) -> None:
    model = tuned(kind, net, dtype)
    plain = net_of(net, dtype)
    with torch.no_grad():
        expected = output_of(model)
        assert float((expected - output_of(plain)).abs().max()) > 1e-2
        state = copied(model)
        merge(model)
        assert float((output_of(model) - expected).abs().max()) <= tolerance
    assert same(copied(model), state)  # the state dict of the attached model was already the merged one
    assert list(model.net.state_dict()) == list(plain.net.state_dict())
    merge(model)
    assert same(copied(model), state)


@pytest.mark.parametrize(("kind", "net"), FOLDING)
def test_merging_leaves_a_plain_model(kind: str, net: str) -> None:
    model, plain = merge(tuned(kind, net)), net_of(net)
    assert [name for name, _ in model.net.named_modules()] == [name for name, _ in plain.net.named_modules()]
    assert [name for name, _ in model.net.named_parameters()] == [name for name, _ in plain.net.named_parameters()]
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(module) is type(other) or type(module).__name__.startswith("Tunable")
        assert vars(module).keys() == vars(other).keys()
        for hooks in (key for key in vars(module) if key.endswith("_hooks")):
            assert not vars(module)[hooks], hooks
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("kind", "net"), STAYING)
def test_what_does_not_fold_stays_and_works(kind: str, net: str) -> None:
    model = tuned(kind, net)
    state, names = copied(model), [name for name, _ in added_modules(model)]
    with torch.no_grad():
        expected = output_of(model)
        merge(model)
        assert torch.equal(output_of(model), expected)
    assert same(copied(model), state) and names == [name for name, _ in added_modules(model)] and names


def test_a_fold_rounds_once() -> None:
    net, p = hosted(nn.Linear(64, 64), Addition("lora", "layer", None, {"rank": 3, "alpha": 6}))
    weight = net.net.get_parameter("layer.weight").detach().double()
    exact = weight + 2 * (p["up"].double() @ p["down"].double())
    assert torch.equal(net.net.state_dict()["layer.weight"], exact.float())


# --- state dicts and copies


@pytest.mark.parametrize(("kind", "net"), FOLDING)
def test_a_stock_state_dict_is_what_is_saved_and_what_loads(kind: str, net: str) -> None:
    model, other = tuned(kind, net), net_of(net, seed=5)
    stock = copied(other)
    assert list(model.net.state_dict()) == list(stock)
    result = model.net.load_state_dict(stock)
    assert not result.missing_keys and not result.unexpected_keys
    assert same(copied(model), stock)
    with torch.no_grad():
        assert torch.equal(output_of(model), output_of(other))
    train(model, {n: p for n, p in model.net.named_parameters() if p.requires_grad}, steps=1)
    assert not same(copied(model), stock)
    assert copied(model).keys() == stock.keys()


def test_a_partial_load_changes_nothing_else() -> None:
    model = tuned("ssf", "vit")
    before, bias = copied(model), "blocks.0.mlp.fc1.bias"
    name = "blocks.0.mlp.fc1.weight"
    model.net.load_state_dict({name: torch.zeros_like(before[name])}, strict=False)
    after = copied(model)
    assert not after[name].any() and torch.equal(after[bias], before[bias])
    assert [key for key in before if not torch.equal(after[key], before[key])] == [name]


def test_loading_beside_chosen_entries() -> None:
    model, other = toy_classifier("vit"), toy_classifier("vit", seed=5)
    host = "blocks.1.attn.qkv"
    entries = {f"{host}.weight": torch.arange(0, 2000, 7)}  # under the LoRA too
    additions = (Addition("lora", host, (0, 32), {"rank": 2, "alpha": 4}),)
    train(model, attach(model, Selection(entries, (), {}, additions)))
    state = copied(model)
    model.net.load_state_dict({}, strict=False)  # folds, and loads nothing
    assert same(copied(model), state)
    model.net.load_state_dict(other.net.state_dict())
    assert same(copied(model), copied(other))
    assert same(copied(merge(model)), copied(other))


def test_loading_stays_strict() -> None:
    model, stock = tuned("lora", "vit"), net_of("vit").net.state_dict()
    name = "blocks.0.attn.qkv.weight"
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"\. $'):
        model.net.load_state_dict({key: tensor for key, tensor in stock.items() if key != name})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "blocks.0.attn.qkv.lora_0.up"\. $'):
        model.net.load_state_dict({**stock, "blocks.0.attn.qkv.lora_0.up": torch.zeros(32, 2)})


@pytest.mark.parametrize(("kind", "net"), STAYING)
def test_what_does_not_fold_has_keys_of_its_own(kind: str, net: str) -> None:
    model, stock = tuned(kind, net), net_of(net).net.state_dict()
    state = copied(model)
    added = {f"{name}.{short}": p for name, module in added_modules(model) for short, p in module.named_parameters()}
    assert set(state) == {*stock, *added} and added
    assert all(torch.equal(state[key], added[key]) for key in added)
    twin = net_of(net)
    attach(twin, Selection({}, (), {}, additions_of(kind, twin)), seed=9)
    twin.net.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(output_of(twin), output_of(model))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)"):
        twin.net.load_state_dict(stock)


@pytest.mark.parametrize(("kind", "net"), [pair for pair in PAIRS if pair[1] in ("sam", "vit")])
def test_a_deep_copy_is_independent(kind: str, net: str) -> None:
    model = tuned(kind, net)
    twin, before = deepcopy(model), copied(model)
    with torch.no_grad():
        expected = output_of(model)
        assert torch.equal(output_of(twin), expected)
    train(twin, {n: p for n, p in twin.net.named_parameters() if p.requires_grad})
    assert same(copied(model), before) and not same(copied(twin), before)
    after = copied(twin)
    merge(twin)
    with torch.no_grad():
        assert torch.equal(output_of(model), expected)
    if issubclass(KINDS[kind], Folding):
        assert not list(added_modules(twin)) and list(added_modules(model))
        merge(model)
        assert same(copied(model), before)
        twin.net.load_state_dict(net_of(net).net.state_dict())  # no load hook is left
    assert same(after, copied(twin)) or issubclass(KINDS[kind], Folding)
