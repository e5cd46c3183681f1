"""A frozen base in bfloat16: the same answers, and the base back at the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy import toy_batch, toy_model
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.errors import CheckpointError, ConfigError
from samtune.models.backbone import Backbone
from samtune.models.sam.model import SamModel
from samtune.tuning.compact import tune_entries
from samtune.tuning.precision import is_lowered, lower_base, restore_base

NETWORKS = ["sam", *FAMILIES]


def build(network: str) -> Backbone:
    model = toy_model() if network == "sam" else toy_classifier(network)
    return model.requires_grad_(False)


def weights(model: Backbone) -> list[str]:
    return [name for name, role in model.roles().items() if role in ("linear", "conv")]


def tune(model: Backbone, names: list[str]) -> dict[str, nn.Parameter]:
    """Makes the entries 3, 13, 23, ... of some weights trainable."""
    owners = {name: name.rpartition(".")[0] for name in names}
    sizes = {name: model.net.get_parameter(name).numel() for name in names}
    return {n: tune_entries(model.net.get_submodule(owners[n]), "weight", torch.arange(3, sizes[n], 10)) for n in names}


def answers(model: Backbone) -> Tensor:
    batch = toy_batch() if isinstance(model, SamModel) else labelled_batch()
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch).float()


def steps(model: Backbone, values: dict[str, nn.Parameter], count: int) -> None:
    optimizer = torch.optim.AdamW(values.values(), lr=1e-3, weight_decay=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        answers(model).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("attached", [False, True], ids=["plain", "attached"])
def test_answers_equal_those_of_the_fp32_base_under_autocast(network: str, attached: bool) -> None:
    model, plain = build(network), build(network)
    if attached:
        tune(model, weights(model))
    lower_base(model, torch.bfloat16)
    assert torch.equal(answers(model), answers(plain))


@pytest.mark.parametrize("network", NETWORKS)
def test_only_frozen_weights_of_linear_and_conv_layers_are_lowered(network: str) -> None:
    model = build(network)
    whole, *others = weights(model)
    model.net.get_parameter(whole).requires_grad_(True)
    values = tune(model, others[:2])
    assert not is_lowered(model)
    lower_base(model, torch.bfloat16)
    assert is_lowered(model)
    lowered = {name for name, parameter in model.net.named_parameters() if parameter.dtype == torch.bfloat16}
    assert lowered == set(others)
    assert all(v.dtype == torch.float32 for v in values.values())
    assert all(p.dtype == torch.float32 for n, p in model.net.named_parameters() if n not in lowered)


@pytest.mark.parametrize("network", NETWORKS)
def test_values_are_those_of_the_fp32_base_and_train_as_fp32_masters(network: str) -> None:
    """A step far below the spacing of bfloat16 is not lost."""
    model, base = build(network), build(network).net.state_dict()
    values = tune(model, weights(model))
    lower_base(model, torch.bfloat16)
    for name, value in values.items():
        assert torch.equal(value, base[name].flatten()[3::10])
    steps(model, values, 1)
    assert all(v.grad is not None and v.grad.dtype == torch.float32 for v in values.values())
    moved = torch.cat([(v.detach() - base[n].flatten()[3::10]).abs() for n, v in values.items()])
    assert 0 < float(moved.median()) < 1.5e-3


@pytest.mark.parametrize("network", NETWORKS)
def test_training_equals_the_one_on_an_fp32_base(network: str) -> None:
    """Autocast rounds every weight anyway, so it is the same run, bit for bit."""
    models = [build(network) for _ in range(2)]
    trained = [tune(model, weights(model)) for model in models]
    lower_base(models[0], torch.bfloat16)
    for model, values in zip(models, trained, strict=True):
        steps(model, values, 3)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_restoring_gives_the_base_back_with_the_tuned_values(network: str) -> None:
    model, base = build(network), build(network).net.state_dict()
    values = tune(model, weights(model))
    lower_base(model, torch.bfloat16)
    steps(model, values, 2)
    before = answers(model)
    restore_base(model, base)
    assert not is_lowered(model)
    assert torch.equal(answers(model), before)
    for name, tensor in model.net.state_dict().items():
        expected = base[name].clone()
        if name in values:
            expected.view(-1)[3::10] = values[name].detach()
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), name


def test_the_base_is_copied_not_shared() -> None:
    model, base = build("vit"), build("vit").net.state_dict()
    copies = {name: tensor.clone() for name, tensor in base.items()}
    values = tune(model, weights(model))
    lower_base(model, torch.bfloat16)
    restore_base(model, base)
    steps(model, values, 1)
    model.net.state_dict()
    assert all(torch.equal(base[name], copies[name]) for name in base)


def test_restoring_a_plain_model_that_was_never_lowered_changes_nothing() -> None:
    model = build("vit")
    restore_base(model, {})
    assert all(torch.equal(t, build("vit").net.state_dict()[n]) for n, t in model.net.state_dict().items())


def test_a_wrong_base_is_refused_and_nothing_is_changed() -> None:
    model = build("vit")
    last = weights(model)[-1]
    lower_base(model, torch.bfloat16)
    base = build("vit").net.state_dict()
    shape = tuple(base[last].shape)
    with pytest.raises(CheckpointError, match=rf"{last} of the model is .*, but the base has no such tensor; pass"):
        restore_base(model, {name: tensor for name, tensor in base.items() if name != last})
    with pytest.raises(CheckpointError, match=r"but the base has \(1, 2\); pass the state dict"):
        restore_base(model, {**base, last: torch.zeros(1, 2)})
    assert model.net.get_parameter(last).dtype == torch.bfloat16 and tuple(model.net.get_parameter(last).shape) == shape
    assert all(model.net.get_parameter(name).dtype == torch.bfloat16 for name in weights(model))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stored as torch.float64\. Allowed: bfloat16, float16"):
        lower_base(build("vit"), torch.float64)
