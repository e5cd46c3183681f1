"""Runs of the grid are shorter than those of the table, and their rate rises for as many steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeChildren

from samtune.errors import ConfigError, RunFolderError
from samtune.run.fit import total_steps
from samtune.run.settings import load_config
from samtune.run.updates import rate
from samtune.sweep import trial as sweep_trial
from samtune.sweep.plan import Cell, first_values, plan, plan_grid
from samtune.sweep.run import run_sweep
from samtune.sweep.settings import Sweep, load_sweep

LINEAR = {"linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}}}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("data: {dir: pictures}\n")


def sweep_of(*settings: str, **changes: Any) -> Sweep:
    content = {"name": "demo", "config": "base.yaml", "cells": LINEAR, "grid": {"train.lr": [1e-3, 3e-3]}} | changes
    Path("sweep.yaml").write_text(json.dumps(content))
    return load_sweep("sweep.yaml", settings)


def risen(cell: Cell, batches: int = 10) -> tuple[int, int]:
    """Returns the steps of a run of `batches` batches an epoch, and after how many of them its rate is at the peak."""
    train = cell.config.train
    total = total_steps(train, batches)
    rates = [rate(train, step, total) for step in range(total)]
    return total, rates.index(max(rates)) + 1


@pytest.mark.parametrize(
    ("changes", "batches", "table", "grid"),
    [
        ({"steps": 100}, 10, (100, 5), (25, 5)),  # the Kvasir table: 1 step of 25 was the fault
        ({"steps": 50, "overrides": {"train.warmup": 0.13}}, 10, (50, 6), (12, 6)),  # 6.5 steps, rounded as `fit` does
        ({"overrides": {"train.warmup": 0.1, "train.epochs": 100}}, 7, (700, 70), (175, 70)),
        ({"overrides": {"train.epochs": 30, "train.steps": 200}, "grid_share": 0.5}, 10, (200, 10), (100, 10)),
        ({"overrides": {"train.epochs": 40, "train.warmup": 0.1}, "grid_share": 1.0}, 5, (200, 20), (200, 20)),
        ({"steps": 1000}, 2, (1000, 50), (250, 50)),  # more steps than the config's epochs have
        ({"overrides": {"train.epochs": 200}, "steps": 200, "grid_share": 0.5}, 2, (200, 10), (100, 10)),
    ],
)
def test_the_grid_rises_for_as_many_steps_as_the_table(
    changes: dict[str, Any], batches: int, table: tuple[int, int], grid: tuple[int, int]
) -> None:
    sweep = sweep_of(**changes)
    assert {risen(cell, batches) for cell in plan(sweep, first_values(sweep))} == {table}
    assert {risen(cell, batches) for cell in plan_grid(sweep)} == {grid}


def test_the_command_says_what_the_config_has() -> None:
    for cell in plan_grid(sweep_of(steps=100)):
        assert cell.overrides[-2:] == ("train.steps=25", "train.warmup=0.2")
        assert load_config(cell.base, cell.overrides) == cell.config


def test_a_warmup_of_the_grid_is_a_share_of_the_table() -> None:
    sweep = sweep_of(steps=100, grid={"train.warmup": [0.05, 0.1]})
    assert [risen(cell) for cell in plan_grid(sweep)] == [(25, 5), (25, 10)]
    assert [cell.values for cell in plan_grid(sweep)] == [{"train.warmup": 0.05}, {"train.warmup": 0.1}]


def test_a_length_that_the_grid_chooses_is_kept() -> None:
    sweep = sweep_of(grid={"train.steps": [40, 80]}, overrides={"train.warmup": 0.1, "train.epochs": 100})
    assert [risen(cell) for cell in plan_grid(sweep)] == [(40, 4), (80, 8)]


def test_a_grid_that_ends_in_the_warmup_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"cells.linear: grid_share: 0.1 leaves the grid 10 steps, fewer than the 20 in which the rate rises in "
        r"the table's runs. Raise grid_share, or lower train.warmup = 0.2.",
    ):
        plan_grid(sweep_of(steps=100, grid_share=0.1, overrides={"train.warmup": 0.2}))
    with pytest.raises(ConfigError, match=r"leaves the grid 2 epochs, fewer than the 4 in which"):
        plan_grid(sweep_of(grid_share=0.1, overrides={"train.warmup": 0.2, "train.epochs": 20}))


def test_a_folder_of_an_earlier_version_is_finished_but_other_settings_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs of the grid once had the table's share of warm-up, which gave them fewer steps of it."""
    children = FakeChildren(lambda given: 0.5)
    monkeypatch.setattr(sweep_trial, "Children", lambda: children)
    sweep = sweep_of(steps=100)
    run_sweep(sweep)
    assert "warm-up" not in caplog.text
    for path in sweep.folder.glob("grid/*/cell.json"):
        content = json.loads(path.read_text())
        content["settings"]["train.warmup"] = "0.05"
        path.write_text(json.dumps(content))
    children.started.clear()
    run_sweep(sweep)
    assert children.started == []
    assert "2 finished runs of the grid had less warm-up than the table's; another --out chooses anew" in caplog.text
    with pytest.raises(RunFolderError, match=r"was run with train.warmup=0.05, not 0.4\. Choose another --out"):
        run_sweep(sweep_of("train.warmup=0.1", steps=100))
