"""A frozen base in 8 bits: the products of the rounded base, values in fp32, and the base back at the end."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from test_precision import build, tune, weights
from torch import Tensor, nn
from toy import toy_batch, toy_lite
from toyvit import labelled_batch

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.models.sam.model import SamModel
from samtune.selection import Selection, select
from samtune.tuning import attach, merge
from samtune.tuning.precision import is_lowered, lower_base, restore_base
from samtune.tuning.product import Rounded

LINEAR = ["sam", "vit", "swin"]  # networks with linear layers


def linears(model: Backbone) -> list[str]:
    names = [name for name in weights(model) if name.endswith(".weight")]  # not the values that are tuned
    return [name for name in names if isinstance(model.net.get_submodule(name[:-7]), nn.Linear)]


def answer(model: Backbone, autocast: bool = False) -> Tensor:
    batch = toy_batch() if isinstance(model, SamModel) else labelled_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(batch).float()


def rounded_twin(model: Backbone) -> Backbone:
    """The same model with an fp32 base that is rounded to 8 bits, but for the tuned entries."""
    twin = deepcopy(model)
    for name in linears(twin):
        weight = twin.net.get_parameter(name)
        kept = weight.detach().flatten()[3::10].clone()
        weight.data = Rounded.of(weight.detach()).to(torch.float32)
        weight.data.view(-1)[3::10] = kept
    return twin


def test_no_entry_moves_by_more_than_half_a_step() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1, 30, 1, 1])[:, None]
    weight[3] = 0
    rounded = Rounded.of(weight)
    assert rounded.codes.dtype == torch.int8 and rounded.scale.shape == (5, 1)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((rounded.to(torch.float32) - weight).abs() <= 0.5001 * step).all())
    assert torch.equal(rounded.codes.abs().amax(1), torch.tensor([127, 127, 127, 0, 127], dtype=torch.int8))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("network", LINEAR)
def test_answers_and_gradients_are_those_of_the_rounded_base(network: str, autocast: bool) -> None:
    model, twin = build(network), rounded_twin(build(network))
    values, expected = (tune(one, linears(one)[:-1]) for one in (model, twin))
    biases = [one.net.get_submodule(linears(one)[-1][:-7]).bias.requires_grad_(True) for one in (model, twin)]
    lower_base(model, torch.int8)
    whole = twin.net.get_parameter(linears(twin)[-1])  # of a layer without chosen entries
    whole.data = Rounded.of(build(network).net.get_parameter(linears(twin)[-1])).to(torch.float32)
    assert all(model.net.get_parameter(name).dtype == torch.int8 for name in linears(model)) and is_lowered(model)
    answers = [answer(one, autocast) for one in (model, twin)]
    assert torch.equal(*answers)
    for found in answers:
        found.square().mean().backward()
    assert all(torch.equal(values[name].grad, expected[name].grad) for name in values)
    assert torch.equal(biases[0].grad, biases[1].grad) and bool(biases[0].grad.any())
    assert not torch.equal(answers[0], answer(build(network), autocast))


@pytest.mark.parametrize("network", LINEAR)
def test_the_base_comes_back_with_the_trained_values(network: str) -> None:
    model, base = build(network), build(network).net.state_dict()
    values = tune(model, linears(model)[::2])
    lower_base(model, torch.int8)
    optimizer = torch.optim.AdamW(values.values(), lr=1e-3)
    before = answer(model)
    before.square().mean().backward()
    optimizer.step()
    moved = answer(model)
    assert not torch.equal(moved, before)  # values that changed are seen, though the codes don't hold them
    restore_base(model, base)
    assert not is_lowered(model) and not any("scale" in name for name, _ in model.net.named_buffers())
    for name, tensor in model.net.state_dict().items():
        expected = base[name].clone()
        if name in values:
            expected.view(-1)[3::10] = values[name].detach()
        assert torch.equal(tensor, expected), name
    assert 0 < float((answer(model) - moved).detach().abs().max()) < 0.1 * float(moved.detach().abs().max())


@pytest.mark.parametrize("name", ["gps", "lora", "dora", "pissa", "bias"])
def test_methods_train_on_it_and_merge(name: str) -> None:
    model, base = build("vit"), build("vit").net.state_dict()
    if name == "gps":
        selection = Selection({n: torch.arange(3, model.net.get_parameter(n).numel(), 10) for n in linears(model)})
    elif name == "bias":
        selection = select(model, None, name="bias")
    else:
        selection = select(model, None, name="lora", variant=name)
    start = answer(model)
    trainable = attach(model, selection, base_dtype=torch.int8)
    assert 0 < float((answer(model) - start).abs().max()) < 0.1 * float(start.abs().max())
    optimizer = torch.optim.SGD(trainable.values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        answer(model).square().mean().backward()
        optimizer.step()
    trained = answer(model).detach()
    merge(model, base=base)
    assert float((answer(model) - trained).abs().max()) < 0.1 * float(trained.abs().max())
    touched = {f"{addition.module}.weight" for addition in selection.additions} | {*selection.names()}
    assert all(torch.equal(t, base[n]) for n, t in model.net.state_dict().items() if n not in touched)


def test_weights_that_train_whole_stay_and_networks_of_convolutions_are_refused() -> None:
    model = build("vit")
    whole = linears(model)[0]
    attach(model, Selection({}, (whole,)), base_dtype=torch.int8)
    kinds = {name: model.net.get_parameter(name).dtype for name in linears(model)}
    assert kinds.pop(whole) == torch.float32 and set(kinds.values()) == {torch.int8}
    told = r"int8 is for linear layers, and toy_lite has none outside of its decoder or head\. Use fp32 or bf16"
    with pytest.raises(ConfigError, match=told):
        lower_base(toy_lite().requires_grad_(False), torch.int8)
