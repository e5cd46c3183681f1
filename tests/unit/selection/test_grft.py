"""GRFT against eq. 4, and its published counts on ViT-B/16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import toy_model
from toyvit import FAMILIES, toy_classifier

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.models.timm.model import build_classifier
from samtune.selection import SELECTORS, Needs, select
from samtune.types import Scores

MODELS = ("sam", *FAMILIES)


def build(family: str) -> Backbone:
    return toy_model() if family == "sam" else toy_classifier(family)


def scores_of(model: Backbone, *, ties: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(3)
    sums = {n: torch.randn(p.shape, generator=generator) for n, p in model.net.named_parameters()}
    return Scores({n: total.sign() if ties else total for n, total in sums.items()}, 1, 0, "hash")


def reference(gradient: Tensor, pattern: str, k: int) -> list[int]:
    """Eq. 4: S_i = sum_j h_ij^2, then all entries of the k rows (or columns) of the largest, the first among equals."""
    matrix = gradient.reshape(gradient.shape[0], -1).double()
    columns = matrix.shape[1]
    lines = matrix if pattern == "rows" else matrix.T
    sums = [sum(h * h for h in line) for line in lines.tolist()]
    best = sorted(range(len(sums)), key=lambda i: (-sums[i], i))[:k]
    if pattern == "rows":
        return sorted(i * columns + j for i in best for j in range(columns))
    return sorted(i * columns + j for i in range(len(matrix)) for j in best)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("pattern", "k"), [("rows", 1), ("rows", 5), ("columns", 1), ("columns", 4)])
def test_selects_what_the_formula_says(family: str, pattern: str, k: int, ties: bool) -> None:
    model = build(family)
    scores = scores_of(model, ties=ties)
    found = select(model, scores, name="grft", pattern=pattern, k=k, biases=False, decoder=False)
    weights = {name for name, role in model.roles().items() if role in ("linear", "conv")}
    assert set(found.entries) == weights and found.whole == () and found.additions == ()
    for name in weights:
        assert found.entries[name].tolist() == reference(scores.sums[name], pattern, k), name


def test_sparse_is_gps() -> None:
    model = toy_model()
    scores = scores_of(model)
    found = select(model, scores, name="grft", pattern="sparse", k=3)
    expected = select(model, scores, name="gps", per_neuron=3)
    assert found.whole == expected.whole
    assert all(torch.equal(found.entries[name], expected.entries[name]) for name in expected.entries)
    assert SELECTORS["grft"].needs(pattern="sparse") == SELECTORS["gps"].needs() == Needs("contrastive")


@pytest.mark.parametrize(
    ("pattern", "k", "message"),
    [
        ("rows", 33, r"select\.k is 33, but image_encoder\.\S+ has 32 rows: that is the largest k\."),
        ("columns", 33, r"select\.k is 33, but image_encoder\.\S+ has 32 columns: that is the largest k\."),
        ("sparse", 33, r"select\.k is 33, but image_encoder\.\S+ has 32 columns: that is the largest k\."),
    ],
)
def test_k_above_the_matrix(pattern: str, k: int, message: str) -> None:
    model = toy_model()
    with pytest.raises(ConfigError, match=message):
        select(model, scores_of(model), name="grft", pattern=pattern, k=k)
    with pytest.raises(ConfigError, match=message):
        SELECTORS["grft"].check(model, pattern=pattern, k=k)


def test_unknown_pattern() -> None:
    with pytest.raises(ConfigError, match=r"select\.pattern: \"row\", expected .*'rows'.* Did you mean 'rows'\?"):
        select(toy_model(), None, name="grft", pattern="row")


def test_published_counts_of_vit_b() -> None:
    """Tab. 8 of GRFT: 65,280 + 83,712 + head of 100 classes is its 0.26 % for CIFAR-100."""
    with torch.device("meta"):
        model = build_classifier("vit_base_patch16_224.augreg_in21k", classes=100, checkpoint="random")
    zeros = {n: torch.zeros(()).expand(p.shape) for n, p in model.net.named_parameters()}
    sizes = {n: p.numel() for n, p in model.net.named_parameters()}
    found = select(model, Scores(zeros, 1, 0, "hash"), name="grft")
    assert sum(len(i) for i in found.entries.values()) == SELECTORS["grft"].size(model) == 65_280
    roles = model.roles()
    assert sum(sizes[n] for n in found.whole if roles[n] == "bias") == 83_712
    assert sum(sizes[n] for n in found.whole if roles[n] == "head") == 76_900
    assert round(100 * (65_280 + 83_712 + 76_900) / sum(sizes.values()), 2) == 0.26
