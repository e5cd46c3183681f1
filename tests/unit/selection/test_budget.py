"""Budgets: read, solved for the knob of each method, kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_model
from toyvit import FAMILIES, toy_classifier

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection import SELECTORS, Selection, picked, select
from samtune.selection.budget import parse_budget
from samtune.types import Scores

MODELS = ("sam", *FAMILIES)
KNOBS = {
    "gps": "per_neuron",
    "grft": "k",
    "spt": "tau",
    "partial": "blocks",
    "lora": "rank",
    "adapter": "width",
    "adaptformer": "width",
    "vpt_shallow": "prompts",
    "vpt_deep": "prompts",
    "mlp": "layers",
}
# which model each method does not fit
UNFIT = {(m, "sam") for m in ("mlp", "vpt_shallow", "vpt_deep")} | {
    (m, f) for m in ("vpt_shallow", "vpt_deep") for f in ("swin", "convnext")
}


def build(family: str) -> Backbone:
    return toy_model() if family == "sam" else toy_classifier(family)


def scores_of(model: Backbone, name: str) -> Scores:
    generator = torch.Generator().manual_seed(1)
    sums = {n: torch.randn(p.shape, generator=generator) for n, p in model.net.named_parameters()}
    squares = {n: total.square() for n, total in sums.items()}
    return Scores(sums, 1, 0, "hash", squares=squares, per="sample" if name == "spt" else "batch")


def options_of(name: str, family: str) -> dict[str, Any]:
    return {"targets": ("fc1",)} if (name, family) == ("lora", "convnext") else {}


def run(name: str, model: Backbone, **options: Any) -> Selection:
    return select(model, scores_of(model, name), name=name, **options)


def size_of(model: Backbone, selection: Selection) -> int:
    """Counts again: entries, whole weights and tables, and what each addition holds."""
    roles, modules = model.roles(), dict(model.net.named_parameters())
    total = sum(len(i) for i in selection.entries.values())
    total += sum(modules[n].numel() for n in selection.whole if roles[n] in ("linear", "conv", "position"))
    for addition in selection.additions:
        o: Any = addition.options
        shape = modules[f"{addition.module}.weight"].shape if addition.kind == "lora" else (0, 0)
        rows = shape[0] if addition.rows is None else addition.rows[1] - addition.rows[0]
        total += {
            "lora": lambda o=o, rows=rows, shape=shape: o["rank"] * rows + o["rank"] * shape[1],
            "adapter": lambda o=o: (o["dim"] + 1) * o["width"] + (o["width"] + 1) * o["dim"],
            "adaptformer": lambda o=o: (o["dim"] + 1) * o["width"] + (o["width"] + 1) * o["dim"],
            "ssf": lambda o=o: o["dim"] + o["shift"] * o["dim"],
            "prompt": lambda o=o: o["count"] * o["dim"],
            "mlp": lambda o=o: o["layers"] * (o["dim"] ** 2 + o["dim"]),
        }[addition.kind]()
    return total


def pairs() -> list[tuple[str, str]]:
    return [(name, family) for name in SELECTORS for family in MODELS if (name, family) not in UNFIT]


def test_knobs() -> None:
    assert {name: row.knob for name, row in SELECTORS.items() if row.knob} == KNOBS


@pytest.mark.parametrize(("name", "family"), pairs())
def test_size_is_what_is_picked(name: str, family: str) -> None:
    model = build(family)
    for extra in ({}, {KNOBS[name]: 2}) if name in KNOBS else ({},):
        options = options_of(name, family) | extra
        found = run(name, model, decoder=False, biases=name in ("linear", "bias"), **options)
        real = size_of(model, found)
        assert picked(model, found) == real
        size = SELECTORS[name].size(model, **options)
        assert real <= size if name == "spt" else real == size


@pytest.mark.parametrize("variant", [{"level": "net"}, {"level": "layer"}, {"criterion": "random"}])
def test_size_of_gps_variants(variant: dict[str, Any]) -> None:
    model = toy_model()
    found = run("gps", model, per_neuron=3, biases=False, decoder=False, **variant)
    assert size_of(model, found) == SELECTORS["gps"].size(model, per_neuron=3, **variant)


@pytest.mark.parametrize("pattern", ["rows", "columns", "sparse"])
def test_size_of_grft_variants(pattern: str) -> None:
    model = toy_classifier("convnext")
    found = run("grft", model, pattern=pattern, k=2, biases=False, decoder=False)
    assert size_of(model, found) == SELECTORS["grft"].size(model, pattern=pattern, k=2)


@pytest.mark.parametrize(("name", "family"), [pair for pair in pairs() if pair[0] in KNOBS])
def test_a_budget_buys_the_largest_knob(name: str, family: str) -> None:
    model = build(family)
    row, knob, options = SELECTORS[name], KNOBS[name], options_of(name, family)
    values = [v for v in (1, 2, 3, 4) if fits(row.check, model, options | {knob: v})]
    for value in values:
        budgets = [row.size(model, **options, **{knob: value})]
        if fits(row.check, model, options | {knob: value + 1}):
            budgets.append(row.size(model, **options, **{knob: value + 1}) - 1)
        for budget in budgets:
            found = run(name, model, budget=budget, **options)
            expected = run(name, model, **options, **{knob: value})
            assert size_of(model, found) <= budget
            assert found.additions == expected.additions and found.names() == expected.names()
            assert all(torch.equal(found.entries[n], expected.entries[n]) for n in found.entries)


def fits(check: Any, model: Backbone, options: dict[str, Any]) -> bool:
    try:
        check(model, **options)
    except ConfigError:
        return False
    return True


def test_a_large_budget_stops_at_what_the_model_allows() -> None:
    model = toy_model()
    assert run("lora", model, budget="100%").additions[0].options["rank"] == 32
    found = run("gps", model, budget="100%", biases=False, decoder=False)
    assert size_of(model, found) == SELECTORS["gps"].size(model, per_neuron=32)
    assert set(run("partial", model, budget="100%").names()) >= {"image_encoder.blocks.0.norm1.weight"}


def test_fixed_sizes_pass_or_not() -> None:
    model = toy_model()
    size = SELECTORS["ssf"].size(model)
    assert run("ssf", model, budget=size).additions
    assert run("bias", model, budget=1).whole and run("linear", model, budget=1).whole
    with pytest.raises(ConfigError, match=rf"is {size - 1:,} parameters, but ssf always picks {size:,} on toy\."):
        run("ssf", model, budget=size - 1)


def test_too_small_a_budget_names_the_smallest_and_the_alternatives() -> None:
    model = toy_model()
    smallest = SELECTORS["grft"].size(model)
    with pytest.raises(ConfigError) as caught:
        run("grft", model, budget=200)
    message = str(caught.value)
    assert f"budget is 200 parameters, but grft picks at least {smallest:,} (select.k=1) on toy." in message
    assert "Methods that fit: spt, linear, bias" in message
    assert "vpt" not in message and "full" not in message


def test_budget_and_knob() -> None:
    with pytest.raises(ConfigError, match=r"select\.budget and select\.rank both set the size of lora; give one"):
        run("lora", toy_model(), budget="1%", rank=4)
    assert run("spt", toy_model(), budget="1%", tau=None).entries  # None is no value


@pytest.mark.parametrize(
    ("budget", "total", "expected"),
    [
        (7, 100, 7),
        ("0.5%", 1000, 5),
        (" 2 % ", 1000, 20),
        (".25%", 86_000_000, 215_000),
        ("100%", 9, 9),
        ("20%", 5, 1),
        ("5.%", 20, 1),
        (100, 100, 100),
        ("0.29%", 10_000, 29),
    ],
)
def test_budgets_are_read(budget: int | str, total: int, expected: int) -> None:
    assert parse_budget(budget, total) == expected


def test_a_budget_above_the_model() -> None:
    with pytest.raises(ConfigError, match=r"select\.budget is 1,001, but the model has 1,000 parameters: the largest"):
        parse_budget(1001, 1000)
    with pytest.raises(ConfigError, match=r"select\.budget is 99,000,000, but the model has"):
        run("gps", toy_model(), budget=99_000_000)


@pytest.mark.parametrize(
    ("budget", "total", "least"),
    [
        ("0.1%", 5, "20"),
        (" 33.3% ", 3, "34"),
        ("0.09%", 1000, "0.1"),
        ("0.0000001%", 86_000_000, "0.0000012"),
        ("99.9%", 1, "100"),
    ],
)
def test_a_share_that_is_nothing(budget: str, total: int, least: str) -> None:
    message = f"select.budget is {budget!r}, which is 0 of the model's {total:,} parameters; "
    with pytest.raises(ConfigError) as caught:
        parse_budget(budget, total)
    assert str(caught.value) == f'{message}the smallest percent is "{least}%".'
    assert parse_budget(f"{least}%", total) == 1


@pytest.mark.parametrize("budget", [0, -3, True, 0.5, "0%", "101%", "-1%", "half", "0.5", "1e3", "1%%"])
def test_no_budgets(budget: Any) -> None:
    with pytest.raises(ConfigError, match=r"select\.budget is .*number of parameters >= 1, .*such as \"0\.5%\""):
        parse_budget(budget, 1000)
