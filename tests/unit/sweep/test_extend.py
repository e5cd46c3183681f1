"""A grid whose best value is its lowest or highest tries the next ones. The runs are played by `FakeChildren`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeChildren

from samtune.sweep import trial as sweep_trial
from samtune.sweep.run import run_sweep
from samtune.sweep.settings import Sweep, load_sweep

ROWS = {"gps": {"title": "GPS", "overrides": {"select": {"name": "gps"}}}}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("data: {dir: pictures}\n")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    played = FakeChildren(lambda given: 0.5)
    monkeypatch.setattr(sweep_trial, "Children", lambda: played)
    return played


def sweep_of(grid: dict[str, Any], **changes: Any) -> Sweep:
    content = {"name": "demo", "config": "base.yaml", "steps": 8, "cells": ROWS, "grid": grid} | changes
    Path("sweep.yaml").write_text(json.dumps(content))
    return load_sweep("sweep.yaml")


def near(**best: float) -> Callable[[dict[str, str]], float]:
    """Scores a run by how near its values are to the best ones, as ratios."""

    def score(given: dict[str, str]) -> float:
        ratios = [float(given[key.replace("_", ".", 1)]) / value for key, value in best.items()]
        return 1.0 - 0.1 * sum(max(ratio, 1 / ratio) for ratio in ratios)

    return score


def chosen(sweep: Sweep) -> dict[str, Any]:
    return dict(json.loads((sweep.folder / "cells/gps_0/cell.json").read_text()))


def grid_of(children: FakeChildren) -> list[str]:
    return [name.removeprefix("grid/gps_") for name in children.started if name.startswith("grid")]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.03, ["0.001", "0.003", "0.01", "0.03", "0.1"]),  # by the ratio at that end, as people write it
        (0.0001, ["0.001", "0.003", "0.01", "0.0003", "0.0001", "3e-05"]),
        (0.003, ["0.001", "0.003", "0.01"]),
    ],
)
def test_it_goes_on_until_the_best_is_inside(children: FakeChildren, best: float, tried: list[str]) -> None:
    children.score = near(train_lr=best)
    sweep = sweep_of({"train.lr": [0.001, 0.003, 0.01]})
    run_sweep(sweep)
    assert grid_of(children) == tried
    assert (chosen(sweep)["lr"], chosen(sweep)["edge"]) == (best, False)
    children.started.clear()
    assert run_sweep(sweep).finished == 1 and children.started == []  # the same values, from the files


@pytest.mark.parametrize(("more", "tried", "lr"), [(0, 3, 0.01), (2, 5, 0.1)])
def test_it_is_bounded_and_said(
    children: FakeChildren, caplog: pytest.LogCaptureFixture, more: int, tried: int, lr: float
) -> None:
    children.score = near(train_lr=50.0)
    sweep = sweep_of({"train.lr": [0.001, 0.003, 0.01]}, grid_extend=more)
    run_sweep(sweep)
    assert len(grid_of(children)) == tried
    assert (chosen(sweep)["lr"], chosen(sweep)["edge"]) == (lr, True)
    assert f"gps: {{'train.lr': {lr}}} is the best of {tried} values, and at their end" in caplog.text


def test_equal_values_and_words_are_no_reason(children: FakeChildren) -> None:
    run_sweep(sweep_of({"train.lr": [0.1, 0.2], "select.level": ["neuron", "layer"]}))
    assert len(grid_of(children)) == 4


def test_several_keys_move_together_and_whole_numbers_stay_whole(children: FakeChildren) -> None:
    children.score = near(train_lr=0.4, select_per_neuron=4)
    sweep = sweep_of({"train.lr": [0.1, 0.2], "select.per_neuron": [1, 2]})
    run_sweep(sweep)
    assert grid_of(children)[4:] == ["0.4,4"]
    assert chosen(sweep)["values"] == {"train.lr": 0.4, "select.per_neuron": 4}
    assert chosen(sweep)["edge"] is True  # nothing was tried beyond it that differs from it in one key alone


def test_a_value_that_the_config_refuses_ends_it(children: FakeChildren, caplog: pytest.LogCaptureFixture) -> None:
    children.score = near(train_ema=5.0)
    sweep = sweep_of({"train.ema": [0.9, 0.99]})
    with caplog.at_level(logging.INFO):
        run_sweep(sweep)
    assert len(grid_of(children)) == 2 and chosen(sweep)["edge"] is True
    assert (
        "gps: nothing beyond {'train.ema': 0.99} can be tried: " in caplog.text
        and "train.ema: 1.0, expected a value < 1" in caplog.text
    )


def test_a_zero_has_no_ratio(children: FakeChildren) -> None:
    children.score = lambda given: 1.0 - float(given["train.weight_decay"])
    run_sweep(sweep_of({"train.weight_decay": [0.0, 0.1]}))
    assert len(grid_of(children)) == 2
