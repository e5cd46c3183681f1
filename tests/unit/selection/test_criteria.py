"""The criteria of GPS: each against a reference of a few lines, on every family of models."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_lite, toy_model
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.scoring.score import score_inputs
from samtune.selection import SELECTORS, Needs, select
from samtune.selection.criteria import CRITERIA, RANK_SHARE, Criterion
from samtune.selection.matrices import weight_matrices
from samtune.types import Scores

MODELS = ("sam", "sam_lite", *FAMILIES)


def model_of(family: str) -> Backbone:
    return {"sam": toy_model, "sam_lite": toy_lite}[family]() if family.startswith("sam") else toy_classifier(family)


def batch_of(family: str) -> Any:
    return toy_batch() if family.startswith("sam") else labelled_batch()


def scores_of(model: Backbone, family: str, criterion: Criterion) -> Scores | None:
    needs = CRITERIA[criterion].needs
    if needs is None:
        return None
    if needs.of == "inputs":
        return score_inputs(model, [batch_of(family)])
    generator = torch.Generator().manual_seed(1)
    sums = {name: torch.randn(p.shape, generator=generator) for name, p in model.net.named_parameters()}
    squares = {name: torch.rand(p.shape, generator=generator) for name, p in model.net.named_parameters()}
    return Scores(sums, 1, 0, "hash", squares, needs.per)


def reference(criterion: str, weight: Tensor, name: str, scores: Scores | None, fused: int) -> np.ndarray:
    """The number of each entry, (out, in), by the formula in the paper's words."""
    w = weight.detach().flatten(1).double().numpy()
    if criterion == "snip":
        return np.abs(w * scores.sums[name].flatten(1).double().numpy())  # type: ignore[union-attr]
    if criterion == "fisher":
        return scores.squares[name].flatten(1).double().numpy()  # type: ignore[union-attr,index,no-any-return]
    if criterion == "smallest":
        return -np.abs(w)
    if criterion == "low_rank":
        parts = []
        for part in np.split(w, fused):
            u, s, v = np.linalg.svd(part, full_matrices=False)
            rank = max(1, min(part.shape) // RANK_SHARE)
            parts.append(np.abs((u[:, :rank] * s[:rank]) @ v[:rank]))
        return np.concatenate(parts)
    inputs = scores.sums[name].double().numpy()  # type: ignore[union-attr]
    groups = inputs.shape[0] // weight.shape[1]
    rows = [inputs[weight.shape[1] * (row * groups // len(w)) :][: weight.shape[1]].ravel() for row in range(len(w))]
    return np.abs(w) * np.stack(rows)  # fps


def best(values: np.ndarray, count: int) -> list[int]:
    """Flat indices of the largest of each row, the first among equals."""
    columns = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :count], axis=1)
    return (np.arange(len(values))[:, None] * values.shape[1] + columns).ravel().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("criterion", ["snip", "fisher", "fps", "smallest", "low_rank"])
def test_the_chosen_are_those_of_the_largest_number(criterion: Criterion, family: str) -> None:
    model = model_of(family)
    scores = scores_of(model, family, criterion)
    found = select(model, scores, name="gps", criterion=criterion, per_neuron=2, biases=False, decoder=False)
    for name in weight_matrices(model):
        weight = model.net.get_parameter(name)
        expected = reference(criterion, weight, name, scores, model.fused().get(name, 1))
        if criterion == "low_rank":  # in another order of operations: compare the numbers, not their order
            chosen, most = (
                np.sort(expected.ravel()[list(i)].reshape(len(weight), -1), axis=1)
                for i in (found.entries[name].tolist(), best(expected, 2))
            )
            np.testing.assert_allclose(chosen, most, rtol=1e-5)
        else:
            assert found.entries[name].tolist() == best(expected, 2), name


@pytest.mark.parametrize("level", ["neuron", "layer", "net"])
def test_the_smallest_are_the_largest_of_no_other_criterion(level: str) -> None:
    model = toy_model()
    found = select(model, None, name="gps", criterion="smallest", level=level, biases=False, decoder=False).entries
    weights = {name: matrix.abs() for name, matrix in weight_matrices(model).items()}
    if level == "net":
        ordered = torch.cat([w.flatten() for w in weights.values()]).sort().values
        chosen = torch.cat([weights[name].flatten()[i] for name, i in found.items()]).sort().values
        assert torch.equal(chosen, ordered[: len(chosen)])
    for name, i in found.items() if level == "layer" else ():
        assert torch.equal(weights[name].flatten()[i].sort().values, weights[name].flatten().sort().values[: len(i)])
    assert sum(map(len, found.values())) == SELECTORS["gps"].size(model, level=level)


def test_a_weight_of_zero_is_the_smallest_and_neighbours_stay_apart() -> None:
    model = toy_model()
    name = "image_encoder.blocks.0.attn.qkv.weight"
    values = torch.full((32,), 1.0)
    values[5], values[3] = 0.0, 1.0 - 2**-24  # the next float below 1
    with torch.no_grad():
        model.net.get_parameter(name)[0] = values
    found = select(model, None, name="gps", criterion="smallest", per_neuron=2).entries[name]
    assert found[:2].tolist() == [3, 5]


def test_float64_weights_are_not_rounded() -> None:
    model = toy_model(dtype=torch.float64)
    name = "image_encoder.blocks.0.attn.qkv.weight"
    with torch.no_grad():
        model.net.get_parameter(name)[0] = 1.0
        model.net.get_parameter(name)[0, 7] = 1.0 - 2**-50
    assert select(model, None, name="gps", criterion="smallest").entries[name][0] == 7


def test_criteria_of_one_pass_share_it() -> None:
    needs = SELECTORS["gps"].needs
    assert needs(criterion="snip") == needs() == Needs("contrastive")
    assert needs(criterion="fisher") == SELECTORS["spt"].needs() == Needs("task", per="sample", squares=True)
    assert needs(criterion="fps") == Needs(None) and Needs(None).of == "inputs"
    for criterion in ("smallest", "low_rank"):
        assert needs(criterion=criterion) is None


def test_the_fisher_of_the_whole_net_is_spt_without_modules() -> None:
    model = toy_model()
    scores = scores_of(model, "sam", "fisher")
    ours = select(model, scores, name="gps", criterion="fisher", level="net", biases=False)
    theirs = select(model, scores, name="spt", structure="none", tau=sum(map(len, ours.entries.values())))
    assert all(torch.equal(ours.entries[name], theirs.entries[name]) for name in ours.entries | theirs.entries)


def test_the_table_names_every_criterion_and_others_are_refused() -> None:
    assert set(get_args(Criterion)) == set(CRITERIA)
    with pytest.raises(ConfigError, match=r"select\.criterion"):
        select(toy_model(), None, name="gps", criterion="largest")
