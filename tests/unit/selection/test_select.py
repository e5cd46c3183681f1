"""`select`: what trains beside a selector's choice, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import toy_model

from samtune.base.tensors import state_hash
from samtune.config.options import default_options, option_problems
from samtune.errors import ConfigError, NonFiniteError
from samtune.models.sam.model import SamModel
from samtune.selection import SELECTORS, Needs, Selector, check_scores, check_select, select
from samtune.types import Scores

FUNCTIONS = {name: row.signature for name, row in SELECTORS.items()}


def scores_of(model: SamModel) -> Scores:
    sums = {n: torch.randn(p.shape) for n, p in model.net.named_parameters()}
    return Scores(sums, 1, 0, "hash", squares={n: total.square() for n, total in sums.items()})


def whole_roles(model: SamModel, **options: object) -> set[str]:
    selection = select(model, scores_of(model), **options)
    return {role for name, role in model.roles().items() if name in selection.whole}


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({"name": "gps"}, {"decoder", "bias"}),
        ({"name": "gps", "decoder": False}, {"bias"}),
        ({"name": "gps", "biases": False}, {"decoder"}),
        ({"name": "gps", "decoder": False, "biases": False}, set()),
        ({"name": "linear"}, {"decoder"}),
        ({"name": "linear", "biases": True}, {"decoder", "bias"}),
        ({"name": "linear", "decoder": False, "biases": True}, {"bias"}),
        ({"name": "full"}, {"linear", "conv", "bias", "norm", "position", "decoder"}),
    ],
)
def test_decoder_and_biases_train_whole_as_asked(options: dict[str, object], roles: set[str]) -> None:
    model = toy_model()
    assert whole_roles(model, **options) == roles


def test_gps_selects_entries_only_in_the_encoder() -> None:
    model = toy_model()
    entries = select(model, scores_of(model), name="gps", per_neuron=3).entries
    assert all(name.startswith("image_encoder.") for name in entries)
    assert all(len(indices) == 3 * len(model.net.get_parameter(name)) for name, indices in entries.items())


def test_unknown_selector() -> None:
    with pytest.raises(ConfigError, match=r"unknown selector 'gpss'\. Did you mean 'gps'\? Known: "):
        select(toy_model(), None, name="gpss")


@pytest.mark.parametrize("name", [name for name, row in SELECTORS.items() if row.needs() is not None])
def test_missing_scores(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"select\.name={name} needs scores"):
        select(toy_model(), None, name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gps", "per_neron": 2}, r"select\.per_neron: unknown option\. Did you mean 'per_neuron'\?"),
        ({"name": "gps", "per_neuron": 2.5}, r"select\.per_neuron: 2.5, expected an integer"),
        ({"name": "gps", "per_neuron": 99}, r"select\.per_neuron is 99, but the neurons of .* have 32 inputs"),
        ({"name": "full", "rank": 2}, r"select\.rank: unknown option"),
        ({"name": "gps", "exclude": ("block 7",)}, r"exclude: unknown part 'block 7'\. .*block 0, block 1, mask"),
        ({"name": "gps", "budget": "lots"}, r"select\.budget is 'lots'"),
        ({"name": "gps", "budget": 1}, r"gps picks at least \d+"),
    ],
)
def test_mistakes_show_before_a_scoring_pass(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_select(toy_model(), **options)
    with pytest.raises(ConfigError, match=message):
        select(toy_model(), None, **options)


def test_check_select_returns_what_the_budget_buys() -> None:
    model = toy_model()
    assert check_select(model, name="gps", per_neuron=2) == {"per_neuron": 2}
    two = SELECTORS["gps"].size(model, per_neuron=2, level="net")
    assert check_select(model, name="gps", level="net", budget=two) == {"level": "net", "per_neuron": 2}
    assert check_select(model, name="linear", budget="1%") == {}


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_defaults_pass_as_options(name: str) -> None:
    assert option_problems("selector", name, default_options(SELECTORS[name].signature), FUNCTIONS) == []


def test_options_from_yaml_have_lists() -> None:
    assert option_problems("selector", "lora", {"targets": ["qkv", "fc1"], "alpha": 16}, FUNCTIONS) == []
    model = toy_model()
    assert len(select(model, None, name="adapter", places=["attention", "mlp"]).additions) == 4


# --- parts that are left out


def test_excluded_parts_lose_entries_whole_tensors_and_additions() -> None:
    model = toy_model()
    parts = model.parts()
    kept = select(model, scores_of(model), name="gps")
    found = select(model, scores_of(model), name="gps", exclude=("block 0", "neck"))
    assert set(found.names()) == {n for n in kept.names() if parts[n] not in ("block 0", "neck")}
    lora = select(model, None, name="lora", exclude=["block 1"])
    assert [a.module for a in lora.additions] == ["image_encoder.blocks.0.attn.qkv"]
    assert not select(model, None, name="linear", exclude=["prompt_encoder"]).whole[-1].startswith("prompt_encoder")


def test_excluding_everything() -> None:
    with pytest.raises(ConfigError, match=r"name=lora .*these parts excluded leaves nothing to train"):
        select(toy_model(), None, name="lora", decoder=False, exclude=("block 0", "block 1"))


# --- scores of something else


def test_scores_that_fit_pass() -> None:
    model = toy_model()
    check_scores(scores_of(model), Needs("contrastive"), model)
    check_scores(scores_of(model), Needs("task", squares=True), model)


@pytest.mark.parametrize(
    ("change", "needs", "message"),
    [
        (lambda s: replace(s, per="sample"), Needs("task"), r"gradients per sample, but per batch is needed"),
        (lambda s: replace(s, squares=None), Needs("task", squares=True), r"no squared gradients; score again"),
        (lambda s: replace(s, sums={}), Needs("task"), r"no '\S+', which toy has: scores of another model\?"),
        (lambda s: replace(s, squares={}), Needs("task", squares=True), r"no '\S+', which toy has"),
        (
            lambda s: replace(s, sums={n: t[None] for n, t in s.sums.items()}),
            Needs("task"),
            r"have the shape \(1, 1, 4, 4, 32\), the parameter of toy has \(1, 4, 4, 32\): scores of another model\?",
        ),
    ],
    ids=["granularity", "no squares", "no sums", "not all squares", "shape"],
)
def test_scores_that_do_not_fit(change: Any, needs: Needs, message: str) -> None:
    model = toy_model()
    with pytest.raises(ConfigError, match=message):
        check_scores(change(scores_of(model)), needs, model)


def test_scores_of_another_checkpoint() -> None:
    model = toy_model()
    scores = replace(scores_of(model), base_hash=state_hash(model.net.state_dict()))
    assert select(model, scores, name="gps").entries
    with torch.no_grad():
        model.net.get_parameter("image_encoder.pos_embed")[0, 0, 0, 0] += 1
    changed = state_hash(model.net.state_dict())
    message = (
        rf"another checkpoint of toy \(weights {scores.base_hash[:12]}, here {changed[:12]}\); score again, or set "
    )
    with pytest.raises(ConfigError, match=message + r"model\.checkpoint"):
        select(model, scores, name="gps")
    assert select(model, replace(scores, base_hash=""), name="gps").entries  # nobody said which


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite(value: float) -> None:
    model = toy_model()
    names = [name for name, role in model.roles().items() if role == "linear"]
    bad = scores_of(model)
    for name in names[2:4]:
        bad.sums[name].view(-1)[3] = value
    with pytest.raises(NonFiniteError, match=rf"scores of '{names[2]}' hold NaN or infinity \(the sums"):
        select(model, bad, name="gps")
    bad = replace(scores_of(model), per="sample")
    assert bad.squares is not None
    bad.squares[names[1]].view(-1)[0] = value
    check_scores(bad, Needs("task", per="sample"), model)  # squares that nobody reads
    with pytest.raises(NonFiniteError, match=rf"scores of '{names[1]}' hold NaN or infinity \(the squares"):
        select(model, bad, name="spt")


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match=r"select\.name=linear with tune\.decoder=false .* leaves nothing to train"):
        select(toy_model(), None, name="linear", decoder=False)


def test_every_row_of_the_table_is_a_selector() -> None:
    assert {"gps", "linear", "full"} <= set(SELECTORS)
    assert all(isinstance(row, Selector) and callable(row.function) for row in SELECTORS.values())
