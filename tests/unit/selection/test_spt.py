"""SPT against Algorithm 1 and eq. 5, with its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_model
from toyvit import FAMILIES, toy_classifier

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection import SELECTORS, Addition, Needs, Selection, picked, select
from samtune.types import Granularity, Scores

MODELS = ("sam", *FAMILIES)


def build(family: str) -> Backbone:
    return toy_model() if family == "sam" else toy_classifier(family)


def scores_of(model: Backbone, *, ties: bool = False, per: Granularity = "sample") -> Scores:
    """Sensitivities that differ between matrices, so that some get modules and some do not."""
    generator = torch.Generator().manual_seed(5)
    squares = {}
    for number, (name, p) in enumerate(model.net.named_parameters()):
        values = torch.rand(p.shape, generator=generator) * (1 + number % 4)
        squares[name] = values.mul(4).round() if ties else values
    return Scores(squares, 1, 0, "hash", squares=squares, per=per)


def run(model: Backbone, **options: Any) -> Selection:
    return select(model, scores_of(model), name="spt", decoder=False, **options)


def reference(model: Backbone, scores: Scores, tau: int, structure: str, rank: int, alpha: float) -> Any:
    """The top-tau of all weights; then, matrix by matrix, a module where its sensitive weights reach its cost."""
    roles, fused = model.roles(), model.fused()
    assert scores.squares is not None
    values = [
        (value, name, index)
        for name, table in scores.squares.items()
        if roles[name] in ("linear", "conv")
        for index, value in enumerate(table.flatten().tolist())
    ]
    entries: dict[str, list[int]] = {}
    for _, name, index in sorted(values, key=lambda item: -item[0])[:tau]:
        entries.setdefault(name, []).append(index)
    modules = set()
    for name in list(entries):
        rows, columns = scores.squares[name].flatten(1).shape
        step = rows // fused.get(name, 1)
        for start in range(0, rows, step) if roles[name] == "linear" and structure != "none" else ():
            inside = [i for i in entries[name] if start <= i // columns < start + step]
            cost = rank * (step + columns) if structure == "lora" else 2 * step * rank + rank + step
            if len(inside) >= cost / alpha:
                modules.add((name.removesuffix(".weight"), None if step == rows else (start, start + step)))
                entries[name] = [i for i in entries[name] if i not in set(inside)]
    return {name: sorted(indices) for name, indices in entries.items() if indices}, modules


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("structure", "rank", "alpha", "ties"),
    [("lora", 2, 1.0, False), ("lora", 2, 10.0, True), ("adapter", 3, 2.0, False), ("none", 8, 1.0, True)],
)
@pytest.mark.parametrize("tau", [40, 3000])
def test_selects_what_the_algorithm_says(
    family: str, structure: str, rank: int, alpha: float, ties: bool, tau: int
) -> None:
    model = build(family)
    scores = scores_of(model, ties=ties)
    found = select(model, scores, name="spt", decoder=False, tau=tau, structure=structure, rank=rank, alpha=alpha)
    entries, modules = reference(model, scores, tau, structure, rank, alpha)
    assert {name: indices.tolist() for name, indices in found.entries.items()} == entries
    assert {(a.module, a.rows) for a in found.additions} == modules and len(found.additions) == len(modules)
    assert found.whole == () and {a.kind for a in found.additions} <= {structure}
    if alpha == 1:
        assert picked(model, found) <= SELECTORS["spt"].size(model, tau=tau) == tau
    if tau == 3000 and structure == "lora":
        assert modules  # the case is not empty


def test_q_k_and_v_get_modules_of_their_own() -> None:
    model = toy_model()
    scores = scores_of(model)
    name = "image_encoder.blocks.1.attn.qkv.weight"
    assert scores.squares is not None
    scores.squares[name][32:64] = 100.0  # k
    found = select(model, scores, name="spt", tau=1024, rank=4, lora_alpha=2.0, decoder=False)
    assert found.additions == (Addition("lora", name.removesuffix(".weight"), (32, 64), {"rank": 4, "alpha": 2.0}),)
    assert not found.entries
    found = select(model, scores, name="spt", tau=1030, rank=4, decoder=False)
    assert found.additions[0].options == {"rank": 4, "alpha": 4.0}
    assert sum(len(i) for i in found.entries.values()) == 6
    adapters = select(model, scores, name="spt", tau=1024, structure="adapter", rank=5, decoder=False)
    assert adapters.additions[0].options == {"width": 5, "dim": 32} and not adapters.merges


def test_a_convolution_stays_unstructured() -> None:
    model = toy_model()
    scores = scores_of(model)
    assert scores.squares is not None
    scores.squares["image_encoder.neck.2.weight"].fill_(100.0)
    found = select(model, scores, name="spt", tau=32 * 32 * 9, rank=1, decoder=False)
    assert found.additions == ()
    assert len(found.entries["image_encoder.neck.2.weight"]) == 32 * 32 * 9


def test_a_vector_is_tuned_whole_or_not_at_all() -> None:
    model = toy_model()
    scores = scores_of(model)
    assert scores.squares is not None
    block = "image_encoder.blocks.0."
    scores.squares[block + "norm1.weight"][:7] = 100.0  # 7 of 32: at least 1/5
    scores.squares[block + "norm2.bias"][:6] = 100.0  # 6 of 32: below
    scores.squares[block + "attn.proj.bias"].fill_(100.0)
    scores.squares[block + "attn.proj.weight"][0, :5] = 100.0
    scores.squares["mask_decoder.iou_token.weight"].fill_(1000.0)  # not of the backbone
    options = {"tau": 7 + 6 + 32 + 5, "structure": "none", "decoder": False}
    found = select(model, scores, name="spt", vectors=True, **options)
    assert found.whole == (block + "attn.proj.bias", block + "norm1.weight")
    assert {n: i.tolist() for n, i in found.entries.items()} == {block + "attn.proj.weight": [0, 1, 2, 3, 4]}
    assert select(model, scores, name="spt", **options).whole == ()


def test_default_tau_is_half_a_percent() -> None:
    model = toy_model()
    total = sum(p.numel() for p in model.parameters())
    assert SELECTORS["spt"].size(model) == int(0.005 * total)
    assert picked(model, run(model)) == int(0.005 * total)


def test_budget_holds_when_modules_cost_more_than_they_replace() -> None:
    model = toy_model()
    generator = torch.Generator().manual_seed(0)
    squares = {n: torch.rand(p.shape, generator=generator) for n, p in model.net.named_parameters()}  # spread evenly
    scores = Scores(squares, 1, 0, "hash", squares=squares, per="sample")
    options: dict[str, Any] = {"name": "spt", "rank": 2, "alpha": 10.0, "decoder": False}
    assert picked(model, select(model, scores, tau=1000, **options)) > 1000  # so the budget has something to do
    assert 500 < picked(model, select(model, scores, budget=1000, **options)) <= 1000
    with pytest.raises(ConfigError, match=r"budget is 50 parameters, but select\.tau=1 picks 128 already"):
        run(model, budget=50, rank=2, alpha=1000.0)


def test_what_it_needs() -> None:
    needs = SELECTORS["spt"].needs
    assert needs() == Needs("task", per="sample", squares=True)
    assert needs(per="batch", tau=5) == Needs("task", per="batch", squares=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, r"select\.tau is 0; the smallest tau is 1 \(for none: select\.name=linear\)"),
        ({"tau": -1}, r"select\.tau is -1; the smallest tau is 1"),
        ({"tau": 0.5}, r"select\.tau: 0\.5, expected an integer"),
        ({"tau": 10**9}, r"tau is 10{9}, but toy has \d+ .*: that is the largest tau \(for all: select\.name=full\)"),
        ({"rank": 33}, r"select\.rank is 33, but \S+attn\.qkv\.weight is a matrix of 32 x 32: the largest rank is 32"),
        ({"alpha": 0.0}, r"select\.alpha: 0.0, expected a value > 0"),
        ({"lora_alpha": 0.0}, r"select\.lora_alpha: 0.0, expected a value > 0"),
        ({"structure": "lra"}, r"select\.structure: .* Did you mean 'lora'\?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(toy_model(), **options)


def test_the_largest_tau_in_the_message_is_one() -> None:
    model = toy_model()
    with pytest.raises(ConfigError) as caught:
        run(model, tau=10**9, structure="none")
    largest = int(str(caught.value).partition("toy has ")[2].split()[0])
    assert picked(model, run(model, tau=largest, structure="none")) == largest
    with pytest.raises(ConfigError, match=rf"tau is {largest + 1}, but toy has {largest} weights"):
        run(model, tau=largest + 1, structure="none")


def test_a_wide_adapter_is_no_error() -> None:
    assert not run(toy_model(), structure="adapter", rank=33).additions


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"squares": None, "per": "sample"}, "have no squared gradients; score again with squares=True"),
        ({"per": "batch"}, "gradients per batch, but per sample is needed"),
    ],
)
def test_scores_of_another_kind(scores: dict[str, Any], message: str) -> None:
    model = toy_model()
    given = Scores(**{**vars(scores_of(model)), **scores})
    with pytest.raises(ConfigError, match=message):
        select(model, given, name="spt")
