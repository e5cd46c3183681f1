"""`select`: what trains beside a selector's choice, and what is refused."""

from __future__ import annotations

import pytest
import torch
from toy import toy_model

from samtune.errors import ConfigError
from samtune.models import SamModel
from samtune.selection import SELECTORS, Selector, select
from samtune.types import Scores


def scores_of(model: SamModel) -> Scores:
    return Scores({n: torch.randn(p.shape) for n, p in model.named_parameters()}, 1, 0, "hash")


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
    assert all(len(indices) == 3 * len(model.get_parameter(name)) for name, indices in entries.items())


def test_unknown_selector() -> None:
    with pytest.raises(ConfigError, match=r"unknown selector 'gsp'\. Did you mean 'gps'\? Known: "):
        select(toy_model(), None, name="gsp")


@pytest.mark.parametrize("name", [name for name, selector in SELECTORS.items() if selector.scored])
def test_missing_scores(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"select\.name={name} needs scores"):
        select(toy_model(), None, name=name)


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match=r"select\.name=linear with tune\.decoder=false .* leaves nothing to train"):
        select(toy_model(), None, name="linear", decoder=False)


def test_every_row_of_the_table_is_a_selector() -> None:
    assert {"gps", "linear", "full"} <= set(SELECTORS)
    assert all(isinstance(row, Selector) and callable(row.function) for row in SELECTORS.values())
