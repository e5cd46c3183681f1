"""Sweeps over several tasks, keys and protocols: what is planned and chosen. The runs are played."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeChildren

from samtune.errors import ConfigError, RunFolderError
from samtune.sweep import trial as sweep_trial
from samtune.sweep.plan import first_values, plan, plan_grid
from samtune.sweep.run import Failure, run_sweep
from samtune.sweep.settings import Sweep, load_sweep

BASE = "task: classification\nmodel: {name: vit_mini}\ndata: {dir: pictures}\ntrain: {epochs: 40}\n"
TASKS = {
    "cub": {"title": "CUB", "group": "Birds", "overrides": {"data.name": "fgvc/cub"}},
    "dogs": {"title": "Dogs", "overrides": {"data.name": "fgvc/stanford_dogs", "train.batch": 8}},
}
ROWS = {
    "linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}},
    "gps": {"title": "GPS", "overrides": {"select": {"name": "gps"}}, "grid": {"select.per_neuron": [1, 2]}},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    children = FakeChildren(lambda given: 0.5)
    monkeypatch.setattr(sweep_trial, "Children", lambda: children)
    return children


def sweep_of(*settings: str, **changes: Any) -> Sweep:
    content = {"name": "demo", "config": "base.yaml", "tasks": TASKS, "cells": ROWS} | changes
    Path("sweep.yaml").write_text(json.dumps(content))
    return load_sweep("sweep.yaml", settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, r"tasks: {}, expected at least one task; leave out `tasks:`"),
        (
            {"tasks": {"a": {"titel": "A"}}},
            r"tasks.a.titel: unknown key. Did you mean 'title'\? Keys of a task: title,",
        ),
        ({"tasks": TASKS | {"c": {"title": "CUB"}}}, r"tasks: titles \['CUB', 'Dogs', 'CUB'\], expected another one"),
        ({"choose_on": 0.5}, r"tasks.cub.overrides: \['data.name=.*'\], expected no data of its own with choose_on"),
        ({"cells": {"a": {"title": "A", "only": ["cat"]}}}, r"cells.a.only: \['cat'\], .* names of tasks: cub, dogs\."),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(**changes)


def test_a_selector_that_does_not_fit_the_model_stops_everything(children: FakeChildren) -> None:
    rows = ROWS | {"far": {"title": "Far", "overrides": {"select": {"name": "partial", "blocks": 99}}}}
    with pytest.raises(ConfigError, match=r"^cells\.far: .*blocks.*99"):
        run_sweep(sweep_of(cells=rows))
    assert children.started == [] and not Path("runs").exists()


def test_rows_times_tasks_times_seeds() -> None:
    rows = ROWS | {"bias": {"title": "Bias", "overrides": {"select": {"name": "bias"}}, "only": ["dogs"]}}
    sweep = sweep_of(cells=rows, seeds=[0, 7])
    cells = plan(sweep, first_values(sweep))
    first = ["cub/linear_0", "cub/gps_0", "dogs/linear_0", "dogs/gps_0", "dogs/bias_0"]
    assert [cell.name for cell in cells] == first + [name.replace("_0", "_7") for name in first]
    assert cells[2].folder == Path("runs/sweeps/demo/cells/dogs/linear_0")
    assert cells[2].log == Path("runs/sweeps/demo/logs/dogs/linear_0.log").resolve()
    assert [cell.config.data.name for cell in cells[:3]] == ["fgvc/cub", "fgvc/cub", "fgvc/stanford_dogs"]
    assert [cell.config.train.batch for cell in cells[:3]] == [32, 32, 8]


def test_a_row_knows_more_than_its_task() -> None:
    rows = {"linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}, "train.batch": 4}}}
    sweep = sweep_of("train.batch=2", cells=rows)
    assert [cell.config.train.batch for cell in plan(sweep, first_values(sweep))] == [4, 4]


def test_the_grid_is_a_product_and_a_row_adds_its_own_keys() -> None:
    sweep = sweep_of(grid={"train.lr": [1e-3, 1e-2], "train.batch": [4]}, grid_share=1.0)
    cells = {cell.name: cell for cell in plan_grid(sweep)}
    names = ["linear_0.001,4", "linear_0.01,4", *(f"gps_{lr},4,{k}" for lr in (0.001, 0.01) for k in (1, 2))]
    assert list(cells) == [f"{task}/grid_{name}" for task in TASKS for name in names]
    cell = cells["dogs/grid_gps_0.01,4,2"]
    assert cell.values == {"train.lr": 0.01, "train.batch": 4, "select.per_neuron": 2}
    assert (cell.config.train.lr, cell.config.select.options["per_neuron"]) == (0.01, 2)
    assert cell.folder == Path("runs/sweeps/demo/grid/dogs/gps_0.01,4,2")
    rows = {"linear": ROWS["linear"] | {"grid": {"train.lr": [0.5]}}}
    assert [
        cell.values for cell in plan_grid(sweep_of(grid={"train.lr": [1, 2]}, cells=rows))
    ] == []  # nothing to choose


def test_tasks_that_share_data_share_the_choice_part() -> None:
    few = {f"shots_{n}": {"title": f"{n} images", "overrides": {"data.shots": n}} for n in (8, 32)}
    Path("masks.yaml").write_text("data: {dir: pictures}\n")
    sweep = sweep_of(config="masks.yaml", tasks=few, choose_on=0.1, grid={"train.lr": [1e-3, 1e-2]})
    cells = [*plan_grid(sweep), *plan(sweep, first_values(sweep))]
    assert {cell.config.data.shots for cell in cells} == {8, 32}
    assert {str(cell.config.data.val) for cell in cells} == {str(Path("runs/sweeps/demo/choice.txt").resolve())}


def test_length_of_the_runs() -> None:
    sweep = sweep_of(grid={"train.lr": [1e-3, 1e-2]}, grid_share=0.25)
    assert {(c.config.train.epochs, c.config.train.steps) for c in plan_grid(sweep)} == {(10, None)}
    assert {(c.config.train.epochs, c.config.train.steps) for c in plan(sweep, first_values(sweep))} == {(40, None)}
    sweep = sweep_of("steps=100", grid={"train.lr": [1e-3, 1e-2]}, grid_share=0.25)
    assert {(c.config.train.epochs, c.config.train.steps) for c in plan_grid(sweep)} == {(100, 25)}
    assert {c.config.train.steps for c in plan(sweep, first_values(sweep))} == {100}


def test_test_images_are_opened_by_the_table_alone() -> None:
    sweep = sweep_of(protocol="retrain")
    assert {(c.config.eval.split, c.config.data.retrain) for c in plan_grid(sweep)} == {("val", False)}
    assert {(c.config.eval.split, c.config.data.retrain) for c in plan(sweep, first_values(sweep))} == {("test", True)}
    sweep = sweep_of()
    assert {c.config.data.retrain for c in plan(sweep, first_values(sweep))} == {False}


def test_scores_are_shared_within_a_task_only() -> None:
    rows = {"gps": ROWS["gps"], "grft": {"title": "GRFT", "overrides": {"select": {"name": "grft"}}}}
    sweep = sweep_of(cells=rows, protocol="retrain")
    table = {cell.name: cell.config.score.file for cell in plan(sweep, first_values(sweep))}
    grid = {cell.name: cell.config.score.file for cell in plan_grid(sweep)}
    assert table["cub/gps_0"] == table["cub/grft_0"] != table["dogs/gps_0"]
    assert grid["cub/grid_gps_1"] == grid["cub/grid_gps_2"] != table["cub/gps_0"]  # it trains on fewer images


def test_every_row_and_task_chooses_its_own_values(children: FakeChildren) -> None:
    best = {"fgvc/cub": 0.01, "fgvc/stanford_dogs": 0.1}
    children.score = lambda given: 0.9 - abs(float(given["train.lr"]) - best[json.loads(given["data.name"])])
    grid = {"train.lr": [0.001, 0.01, 0.1]}
    result = run_sweep(sweep_of(grid=grid, grid_extend=0, protocol="retrain", cells={"a": ROWS["linear"]}))
    assert (result.finished, result.failed) == (2, {})
    facts = {
        name: json.loads((result.folder / f"cells/{name}_0/cell.json").read_text()) for name in ("cub/a", "dogs/a")
    }
    assert facts["cub/a"]["values"] == {"train.lr": 0.01} and facts["dogs/a"]["values"] == {"train.lr": 0.1}
    assert [facts[name]["edge"] for name in facts] == [False, True]
    assert facts["dogs/a"]["choice"] is None and facts["dogs/a"]["task"] == "dogs"  # retrained: nothing was validated
    chosen = json.loads((result.folder / "grid/cub/a_0.01/cell.json").read_text())
    assert chosen["choice"] == pytest.approx(0.9)  # top1
    assert children.given["cells/dogs/a_0"]["data.retrain"] == "true"


def test_a_failed_grid_leaves_out_its_task_only(children: FakeChildren, caplog: pytest.LogCaptureFixture) -> None:
    children.code = lambda name: 3 if name == "grid/cub/gps_2" else 0
    result = run_sweep(sweep_of())
    log = Path("runs/sweeps/demo/logs/cub/grid_gps_2.log").resolve()
    assert result.failed == {"cub/grid_gps_2": Failure(log, "the disk is full")}
    assert sorted(p.parent.name for p in result.folder.glob("cells/cub/*/cell.json")) == ["linear_0"]
    assert sorted(p.parent.name for p in result.folder.glob("cells/dogs/*/cell.json")) == ["gps_0", "linear_0"]
    assert "cub/gps is left out: its grid is not complete" in caplog.text
    assert "cub/grid_gps_2 failed with exit code 3: the disk is full" in caplog.text


def test_a_run_without_a_complete_result_has_failed(children: FakeChildren) -> None:
    fine = children.run

    def run(command: list[str], log: Path, threads: int) -> int:
        code = fine(command, log, threads)
        (Path(command[command.index("--run-dir") + 1]) / "history.jsonl").unlink()
        return code

    children.run = run  # type: ignore[method-assign]
    result = run_sweep(sweep_of(cells={"a": ROWS["linear"]}))
    assert result.finished == 0
    assert "the run left no complete result: FileNotFoundError" in result.failed["cub/a_0"].error


def test_an_unknown_engine_and_an_address_without_ray(children: FakeChildren) -> None:
    with pytest.raises(ConfigError, match=r"unknown engine 'rya'\. Did you mean 'ray'"):
        run_sweep(sweep_of(), engine="rya")
    with pytest.raises(ConfigError, match="--address x:1: only Ray runs on other machines; add --engine ray"):
        run_sweep(sweep_of(), address="x:1")
    assert children.started == []


def test_the_runs_belong_to_the_sweeps_mlflow_run(children: FakeChildren) -> None:
    import mlflow

    sweep = sweep_of("track.mlflow=true", "track.experiment=sweeps", cells={"a": ROWS["linear"]})
    run_sweep(sweep)
    (run_id,) = {given["track.parent"] for given in children.given.values()}
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'runs' / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["name"] == "demo"
    assert run.data.metrics["cub/a/top1"] == 0.5 and "dogs/a/mean_per_class" in run.data.metrics

    (sweep.folder / "cells/cub/a_0/cell.json").unlink()
    children.code = lambda name: 1
    children.given.clear()
    assert run_sweep(sweep).finished == 1
    assert [given["track.parent"] for given in children.given.values()] == [run_id]  # that of the cell which failed
    assert client.get_run(run_id).info.status == "FAILED"
    assert (sweep.folder / "mlflow_run.txt").read_text().strip() == run_id


def test_a_broken_tracker_stops_no_sweep(
    children: FakeChildren, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = run_sweep(sweep_of("track.mlflow=true", cells={"a": ROWS["linear"]}))
    assert result.finished == 2
    assert "track.parent" not in children.given["cells/cub/a_0"]
    assert "MLflow does not take this run" in caplog.text and "the sweep's folder has everything" in caplog.text


def test_a_row_can_be_left_out(children: FakeChildren) -> None:
    sweep = sweep_of("cells.gps.only=[]")
    assert {cell.row for cell in plan(sweep, first_values(sweep))} == {"linear"}


def test_a_value_with_which_training_diverges_loses_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    children = FakeChildren(lambda given: 0.5, code=lambda name: 5 if name.endswith("linear_0.1") else 0)
    monkeypatch.setattr(sweep_trial, "Children", lambda: children)
    sweep = sweep_of(cells={"linear": ROWS["linear"]}, grid={"train.lr": [0.01, 0.1]})
    result = run_sweep(sweep)
    assert (result.finished, result.failed) == (2, {})
    started = len(children.started)
    lost = json.loads(Path("runs/sweeps/demo/grid/cub/linear_0.1/cell.json").read_text())
    assert lost["choice"] is None
    run_sweep(sweep)
    assert len(children.started) == started


def test_a_second_sweep_in_a_folder_is_refused(children: FakeChildren) -> None:
    Path("runs/sweeps/demo").mkdir(parents=True)
    with Path("runs/sweeps/demo/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="another sweep runs in runs/sweeps/demo"):
            run_sweep(sweep_of())
    assert children.started == []
    assert run_sweep(sweep_of()).finished == 4


def test_options_of_timm_count_and_the_machine_does_not(children: FakeChildren) -> None:
    assert run_sweep(sweep_of()).finished == 4
    started = len(children.started)
    run_sweep(sweep_of("data.workers=2", "data.cache=true"))
    assert len(children.started) == started
    with pytest.raises(RunFolderError, match=r"model\.options\.act_layer=nothing, not relu"):
        run_sweep(sweep_of("model.options={act_layer: relu}"))
