"""What holds for every row of the table of methods, on every family of models where it is defined.

A new row, or a new family, is checked without further work; `OPTIONS` has the options without a default, and
`UNDEFINED` the pairs that must be refused.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import prompts_of, toy_batch, toy_lite, toy_model
from toy_dino import toy_dino
from toy_hf import toy_hf
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.errors import ConfigError
from samtune.files.audit import audit
from samtune.files.delta import delta_restores, save_delta
from samtune.models.backbone import Backbone
from samtune.models.hf.families import DINOS
from samtune.scoring.score import score, score_inputs
from samtune.selection import SELECTORS, Selection, load_selection, save_selection, select
from samtune.tasks.classes.losses import head_cross_entropy
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import task_loss
from samtune.tuning import attach, count, count_by_block, merge
from samtune.tuning.precision import restore_base
from samtune.types import AnyBatch, Granularity, Scores

# Of these families, whose blocks are those of others, what differs by family; all methods would take minutes.
FEW = {"sam2": ("gps", "lora", "ssf"), "sam3": ("spt", "lora"), "sam_hq": ("ssf",), "edgetam": ("gps",)}
SAMS = {"sam": toy_model, "sam_lite": toy_lite, **{name: partial(toy_hf, name) for name in FEW}}
FEW["dinov3"] = ("gps", "grft", "spt", "lora", "ssf", "adaptformer")  # but for names and positions it is DINOv2
MODELS = [*SAMS, *FAMILIES, *DINOS]
OPTIONS: dict[str, dict[str, Any]] = {"spt": {"tau": 2000, "rank": 2}}
# Beside these, every method runs with its defaults.
EXTRA = {
    "gps-5": {"name": "gps", "per_neuron": 5},
    "gps-layer": {"name": "gps", "level": "layer"},
    "gps-net": {"name": "gps", "level": "net"},
    "gps-magnitude": {"name": "gps", "criterion": "magnitude"},
    "gps-random": {"name": "gps", "criterion": "random"},
    "gps-fps": {"name": "gps", "criterion": "fps"},
    "lora-dora": {"name": "lora", "variant": "dora", "rank": 2},
    "lora-pissa": {"name": "lora", "variant": "pissa", "rank": 2},
    "grft-columns": {"name": "grft", "pattern": "columns"},
    "grft-sparse": {"name": "grft", "pattern": "sparse"},
    "spt-adapter": {"name": "spt", "tau": 2000, "structure": "adapter", "rank": 2},
    "spt-unstructured": {"name": "spt", "tau": 500, "structure": "none"},
    "spt-vectors": {"name": "spt", "tau": 2000, "rank": 2, "vectors": True},
}
CASES = {**{name: {"name": name, **OPTIONS.get(name, {})} for name in SELECTORS}, **EXTRA}
UNDEFINED = {
    *((name, model) for name in ("vpt_shallow", "vpt_deep") for model in MODELS if model not in ("vit", "dinov2")),
    *(("mlp", model) for model in SAMS),
    ("adaptformer", "sam_lite"),
    ("adaptformer", "edgetam"),
}
# What differs between these and the selector's default is checked on all networks in `tests/unit`.
ONLY = {"gps-fps": ("sam_lite",), "lora-dora": ("vit", "sam_lite"), "lora-pissa": ("vit", "sam_lite")}
DEFINED = [
    (case, model)
    for model in MODELS
    for case in FEW.get(model, CASES)
    if (CASES[case]["name"], model) not in UNDEFINED and model in ONLY.get(case, MODELS)
]


def model_of(family: str, *, dtype: torch.dtype = torch.float32) -> Backbone:
    if family in DINOS:
        return toy_dino(family, dtype=dtype)
    return SAMS[family](dtype=dtype) if family in SAMS else toy_classifier(family, dtype=dtype)


def batches_of(family: str) -> list[AnyBatch]:
    if family in SAMS:
        return [toy_batch(seed=seed, prompts=prompts_of(kind)) for seed, kind in enumerate(("none", "box"))]
    return [labelled_batch(seed=seed) for seed in range(2)]


def loss_of(model: Backbone, batch: AnyBatch) -> Tensor:
    logits = model(batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # under autocast too
    target = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return F.mse_loss(logits, target)


def logits_of(model: Backbone, family: str) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch) for batch in batches_of(family)]


SCORES: dict[tuple[str, Granularity], Scores] = {}


def scores_of(case: str, family: str) -> Scores | None:
    """Returns a pass with squares, of the granularity that the method wants; made once."""
    options = {key: value for key, value in CASES[case].items() if key != "name"}
    needs = SELECTORS[CASES[case]["name"]].needs(**options)
    if needs is None:
        return None
    if needs.of == "inputs":
        return score_inputs(model_of(family), batches_of(family))
    if (family, needs.per) not in SCORES:
        loss = task_loss(dice_bce) if family in SAMS else head_cross_entropy
        SCORES[family, needs.per] = score(model_of(family), batches_of(family), loss, per=needs.per, squares=True)
    return SCORES[family, needs.per]


def selection_of(case: str, family: str, **more: Any) -> Selection:
    return select(model_of(family), scores_of(case, family), **{**CASES[case], **more})


def train(model: Backbone, parameters: list[nn.Parameter], family: str, *, steps: int) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        batches = batches_of(family)
        loss_of(model, batches[step % len(batches)]).backward()
        optimizer.step()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


defined = pytest.mark.parametrize(("case", "family"), DEFINED, ids=lambda value: str(value))


@defined
def test_a_method_is_the_base_at_the_start_where_it_says_so(case: str, family: str) -> None:
    plain, model = model_of(family), model_of(family)
    attach(model, selection_of(case, family))
    equal = all(torch.equal(a, b) for a, b in zip(logits_of(model, family), logits_of(plain, family), strict=True))
    assert equal == SELECTORS[CASES[case]["name"]].identity


@defined
def test_counts_are_what_trains(case: str, family: str) -> None:
    plain, model = model_of(family), model_of(family)
    selection = selection_of(case, family)
    counts = count(plain, selection)
    trained = attach(model, selection)
    assert counts.total == sum(p.numel() for p in trained.values()) > 0
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    assert counts == count(model, selection)
    lines = [counts.selected, counts.bias, counts.norm, counts.decoder, counts.head, counts.added]
    assert sum(lines) == counts.total == sum(amount for _, _, amount in count_by_block(plain, selection))
    base = sum(p.numel() for p in plain.parameters())
    assert counts.percent == pytest.approx(100 * counts.total / base)


@defined
def test_gradients_reach_what_trains_and_nothing_else(case: str, family: str) -> None:
    model = model_of(family)
    trained = attach(model, selection_of(case, family))
    train(model, list(trained.values()), family, steps=1)  # LoRA's down gets none while up is zero
    model.zero_grad()
    sum(loss_of(model, batch) for batch in batches_of(family)).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    roles = model.roles()
    idle = [name for name, p in trained.items() if p.grad is None and roles.get(name) != "decoder"]
    assert idle == []


@defined
def test_merging_changes_no_logit_and_what_is_frozen_stays(case: str, family: str, tmp_path: Path) -> None:
    model, base = model_of(family), model_of(family).net.state_dict()
    selection = selection_of(case, family)
    train(model, list(attach(model, selection).values()), family, steps=3)
    tuned = logits_of(model, family)
    merge(model)
    merged, state = logits_of(model, family), copied(model)
    worst = max(float((a - b).abs().max()) for a, b in zip(tuned, merged, strict=True))
    rounds = any(addition.merges or "axis" in addition.options for addition in selection.additions)
    assert worst <= (1e-4 if rounds else 0.0)
    assert audit(base, state, selection).ok
    assert not all(torch.equal(state[name], base[name]) for name in base) or not selection.merges
    assert not any(p.requires_grad for p in model.parameters())
    if case in SELECTORS:
        assert selection.merges == SELECTORS[case].merges
    if selection.merges:
        assert list(state) == list(base)
        plain = model_of(family)
        plain.net.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(merged, logits_of(plain, family), strict=True))
    again = merge(model).net.state_dict()
    assert list(again) == list(state) and all(torch.equal(again[name], state[name]) for name in state)
    delta = tmp_path / "delta.safetensors"
    save_delta(delta, base=base, merged=state, selection=selection, metadata={})
    assert delta_restores(base, delta)


@pytest.mark.parametrize(("case", "family"), [pair for pair in DEFINED if pair[1] in ("sam", "vit")])
def test_a_bf16_base_merges_into_the_fp32_base(case: str, family: str) -> None:
    model, plain = model_of(family), model_of(family)
    base = copied(plain)
    selection = selection_of(case, family)
    parameters = list(attach(model, selection, base_dtype=torch.bfloat16).values())
    assert {p.dtype for p in parameters} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        train(model, parameters, family, steps=2)
    restore_base(model, base)
    tuned = logits_of(model, family)
    merge(model)
    worst = max(float((a - b).abs().max()) for a, b in zip(tuned, logits_of(model, family), strict=True))
    assert worst <= (1e-4 if any(addition.merges for addition in selection.additions) else 0.0)
    assert audit(base, model.net.state_dict(), selection).ok


@defined
def test_a_state_dict_carries_the_current_values(case: str, family: str) -> None:
    model, stock = model_of(family), model_of(family).net.state_dict()
    selection = selection_of(case, family)
    train(model, list(attach(model, selection).values()), family, steps=2)
    state = model.net.state_dict()
    added = [name for name in state if name not in stock]
    assert [name for name in state if name in stock] == list(stock)
    assert bool(added) == (not selection.merges)
    twin = model_of(family)
    attach(twin, Selection({}, additions=tuple(a for a in selection.additions if not a.merges)))
    twin.net.load_state_dict(state)
    tolerance = 1e-4 if any(a.merges for a in selection.additions) else 0.0
    pairs = zip(logits_of(twin, family), logits_of(model, family), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) <= tolerance


@defined
def test_a_copy_is_independent(case: str, family: str) -> None:
    model = model_of(family)
    train(model, list(attach(model, selection_of(case, family)).values()), family, steps=1)
    before, twin = logits_of(model, family), deepcopy(model)
    train(twin, [p for p in twin.parameters() if p.requires_grad], family, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, logits_of(model, family), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, logits_of(twin, family), strict=True))


@defined
def test_the_same_input_gives_the_same_selection_and_its_file_keeps_it(case: str, family: str, tmp_path: Path) -> None:
    model, first = model_of(family), selection_of(case, family)
    shapes = {name: tuple(p.shape) for name, p in model.net.named_parameters()}
    save_selection(first, tmp_path / "s.safetensors", shapes)
    for other in (selection_of(case, family), load_selection(tmp_path / "s.safetensors")):
        assert other.whole == first.whole and other.additions == first.additions
        assert other.entries.keys() == first.entries.keys()
        assert all(torch.equal(other.entries[name], first.entries[name]) for name in first.entries)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), model_of(family).parameters(), strict=True))


@defined
def test_nothing_fixed_trains_and_biases_and_decoder_are_options(case: str, family: str) -> None:
    roles = model_of(family).roles()
    selection = selection_of(case, family)
    assert all(roles[name] != "fixed" for name in selection.names())
    ends = {name for name, role in roles.items() if role in ("head", "decoder")}
    assert ends <= set(selection.whole)
    try:
        bare = selection_of(case, family, decoder=False, biases=False)
    except ConfigError as error:  # linear alone
        assert "nothing to train" in str(error)
        return
    assert not ends & set(bare.names())


@pytest.mark.parametrize(("case", "family"), [pair for pair in DEFINED if SELECTORS[CASES[pair[0]]["name"]].knob])
def test_a_budget_is_kept(case: str, family: str) -> None:
    options = CASES[case]
    selector, model = SELECTORS[options["name"]], model_of(family)
    assert selector.knob is not None
    given = {key: value for key, value in options.items() if key not in ("name", selector.knob)}
    least = selector.size(model, **given, **{selector.knob: 1})
    for budget in (max(3000, least), "60%"):
        selection = select(
            model, scores_of(case, family), name=options["name"], budget=budget, biases=False, decoder=False, **given
        )
        most = budget if isinstance(budget, int) else 0.6 * sum(p.numel() for p in model.parameters())
        counts = count(model, selection)
        assert 0 < counts.selected + counts.added <= most


@pytest.mark.parametrize(("name", "family"), sorted(UNDEFINED))
def test_a_method_that_is_not_defined_for_a_model_names_another(name: str, family: str) -> None:
    with pytest.raises(ConfigError) as error:
        selection_of(name, family)
    assert any(other in str(error.value) for other in (*SELECTORS, "fc1"))


@pytest.mark.parametrize(
    ("case", "family"), [pair for pair in DEFINED if pair[0] in ("gps", "lora", "spt", "adapter", "ssf")]
)
def test_fp64_trains_in_fp64(case: str, family: str) -> None:
    model = model_of(family, dtype=torch.float64)
    trained = attach(model, selection_of(case, family))
    assert {p.dtype for p in trained.values()} == {torch.float64}
    train(model, list(trained.values()), family, steps=2)
    tuned = logits_of(model, family)
    worst = max(
        float((a - b).abs().max())
        for a, b in zip(tuned, logits_of(merge(model), family), strict=True)  # type: ignore[arg-type]
    )
    assert worst <= 1e-10
