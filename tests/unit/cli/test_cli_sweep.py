"""The commands `sweep` and `compare`: what they print, write and return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fake_runs import FakeChildren, write_run
from helpers import write_data
from typer.testing import CliRunner

from samtune.cli.train import train_app
from samtune.errors import ConfigError, DataError, RunFolderError
from samtune.sweep import trial as sweep_trial

ROWS = {
    "linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}},
    "gps": {"title": "GPS", "overrides": {"select": {"name": "gps"}}},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("base.yaml").write_text("data: {dir: pictures}\n")
    content: dict[str, Any] = {"name": "demo", "config": "base.yaml", "steps": 8, "cells": ROWS}
    Path("demo.yaml").write_text(json.dumps(content))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    """Plays the runs: GPS is better."""
    children = FakeChildren(lambda given: 0.7 if "gps" in given["select"] else 0.5)
    monkeypatch.setattr(sweep_trial, "Children", lambda: children)
    return children


def run(*arguments: object) -> Result:
    return CliRunner().invoke(train_app, [str(a) for a in arguments])


def test_sweep_prints_the_table_and_last_the_folder(children: FakeChildren) -> None:
    result = run("sweep", "--config", "demo.yaml", "--out", "out", "--jobs", 2, "data.dir=here", "seeds=[0, 1]")
    assert result.exit_code == 0, result.output
    assert "| GPS | 0.700 ± 0.000 | 0.700 to 0.700 |" in result.stdout
    assert result.stdout.rstrip().endswith("out")
    assert sorted(children.started) == ["cells/gps_0", "cells/gps_1", "cells/linear_0", "cells/linear_1"]
    assert "data.dir=here" in Path("out/logs/gps_1.log").read_text()


def test_a_dry_run_lists_what_is_left_and_writes_nothing(children: FakeChildren) -> None:
    given = ("sweep", "--config", "demo.yaml", "seeds=[0, 1]", "grid={train.lr: [0.001, 0.01]}")
    result = run(*given, "--dry-run")
    assert result.exit_code == 0, result.output
    assert children.started == [] and not Path("runs").exists()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert "demo: 8 runs, 1 at once" in result.stdout
    # two values with a quarter of the steps, and two seeds of 8
    assert ["GPS", "2", "0", "2", "0", "20", "steps"] in lines and ["all", "4", "0", "4", "0", "40", "steps"] in lines
    assert run(*given).exit_code == 0
    assert ["all", "4", "4", "4", "4", "nothing"] in [
        line.split() for line in run(*given, "--dry-run").stdout.splitlines()
    ]
    other = run(*given, "steps=16", "--dry-run")
    assert isinstance(other.exception, RunFolderError) and len(children.started) == 8


def test_a_failure_is_told_at_the_end_with_exit_code_1(children: FakeChildren) -> None:
    children.code = lambda name: 6 if name == "cells/gps_0" else 0
    result = run("sweep", "--config", "demo.yaml")
    assert result.exit_code == 1
    assert "| GPS |  |  |  |  |  |  |" in result.stdout
    assert "1 cell(s) failed; the same command runs them again:" in result.stderr
    assert f"gps_0: the disk is full ({Path('runs/sweeps/demo/logs/gps_0.log').resolve()})" in result.stderr


def test_without_a_finished_cell_there_is_no_table(children: FakeChildren) -> None:
    children.code = lambda name: 1
    result = run("sweep", "--config", "demo.yaml")
    assert result.exit_code == 1 and "2 cell(s) failed" in result.stderr
    assert result.stdout.strip() == "runs/sweeps/demo"


def test_a_wrong_file_starts_nothing(children: FakeChildren) -> None:
    result = run("sweep", "--config", "demo.yaml", "stepz=4")
    assert isinstance(result.exception, ConfigError)  # `cli.main` turns it into a message and exit code 2
    assert "stepz: unknown key" in str(result.exception) and children.started == []


def test_compare_prints_and_writes(children: FakeChildren) -> None:
    run("sweep", "--config", "demo.yaml")
    write_run(Path("mine"), (0.1, 0.2, 0.3, 0.4))
    result = run("compare", "runs/sweeps/demo", "mine", "--json", "new/numbers.json", "--figures", "pictures")
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().endswith("pictures/cost.png") and Path("pictures/cost.png").is_file()
    assert "| Linear | 0.500 |" in result.stdout and "mine | 0.250 |" in result.stdout
    content = json.loads(Path("new/numbers.json").read_text())
    assert [row["title"].rpartition("/")[2] for row in content["rows"]] == ["Linear", "GPS", "mine"]
    assert content["best"] == "GPS"


def test_compare_against_a_row_with_a_page(children: FakeChildren) -> None:
    run("sweep", "--config", "demo.yaml")
    result = run("compare", "runs/sweeps/demo", "--against", "linear", "--report", "new/page.html")
    assert result.exit_code == 0, result.output
    assert (
        "| GPS | 0.700 | 0.700 to 0.700 | 0.350 | 0.350 to 0.350 | +0.200 (+0.200 to +0.200), p 0.12 |" in result.stdout
    )
    assert (
        result.stdout.rstrip().endswith("new/page.html")
        and "Differences to Linear" in Path("new/page.html").read_text()
    )
    wrong = run("compare", "runs/sweeps/demo", "--against", "none")
    assert isinstance(wrong.exception, ConfigError) and "There are: linear (Linear), gps (GPS)" in str(wrong.exception)


def test_engine_and_address_are_passed_on(children: FakeChildren) -> None:
    result = run("sweep", "--config", "demo.yaml", "--address", "10.0.0.1:6379")
    assert isinstance(result.exception, ConfigError) and "add --engine ray" in str(result.exception)
    result = run("sweep", "--config", "demo.yaml", "--engine", "ray", "--address", "nowhere")
    assert isinstance(result.exception, ConfigError) and "expected HOST:PORT" in str(result.exception)
    assert children.started == []


def test_compare_with_published_rows_of_no_known_data(children: FakeChildren) -> None:
    run("sweep", "--config", "demo.yaml")
    result = run("compare", "runs/sweeps/demo", "--paper", "vtab")
    assert isinstance(result.exception, ConfigError) and "--paper vtab" in str(result.exception)


def test_compare_says_what_is_missing_in_words(tmp_path: Path) -> None:
    result = run("compare", "nowhere")
    assert isinstance(result.exception, DataError)
    assert "nowhere does not hold metrics.json and per_image.csv" in str(result.exception)
    assert "metrics.json: no such file or directory)" in str(result.exception) and "Error(" not in str(result.exception)


def test_compare_needs_runs() -> None:
    assert run("compare").exit_code == 2
    assert isinstance(run("compare", "nowhere").exception, DataError)


@pytest.mark.slow
def test_a_real_sweep(tmp_path: Path) -> None:
    write_data(tmp_path / "data" / "train", train=12, val=0, test=0)
    write_data(tmp_path / "data" / "val", train=2, val=0, test=0, seed=1)
    content = json.loads(Path("demo.yaml").read_text()) | {"choose_on": 0.25, "grid": {"train.lr": [1e-3, 3e-3]}}
    content["cells"]["linear"]["grid"] = {"train.lr": [1e-3]}
    Path("demo.yaml").write_text(json.dumps(content))
    small = ("model.checkpoint=random", "model.image_size=64", "run.device=cpu", "train.batch=4", "data.dir=data")
    result = run("sweep", "--config", "demo.yaml", "steps=2", "grid_share=0.5", *small)
    logs = "\n".join(path.read_text() for path in Path("runs/sweeps/demo/logs").glob("*.log"))
    assert result.exit_code == 0, result.output + logs
    assert len(list(Path("runs/sweeps/demo/scores").glob("*.safetensors"))) == 1  # computed once, for grid and cell
    assert "scores of" in Path("runs/sweeps/demo/logs/gps_0.log").read_text()
    facts = json.loads(Path("runs/sweeps/demo/cells/gps_0/cell.json").read_text())
    assert facts["steps"] == 2 and facts["edge"] is True and 0 < facts["memory_mib"] < 8000
    rows = json.loads(Path("runs/sweeps/demo/cells/linear_0/metrics.json").read_text())
    assert rows["n_images"] == 2 and rows["trainable"]["selected"] == 0
