"""Sweeps: what is planned, chosen, run, left alone and refused. The runs themselves are played by `FakeChildren`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import FakeChildren
from helpers import write_data
from PIL import Image

from samtune.errors import ConfigError, DataError, RunFolderError
from samtune.sweep import trial as sweep_trial
from samtune.sweep.plan import choice_list, first_values, plan, plan_grid
from samtune.sweep.run import Failure, best_values, run_sweep, save_choice
from samtune.sweep.settings import ONE_TASK, Sweep, load_sweep

BASE = "data: {dir: pictures}\n"
ROWS = {
    "linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}},
    "gps": {"title": "GPS", "overrides": {"select": {"name": "gps", "per_neuron": 2}}},
}
SHIPPED = sorted((Path(__file__).resolve().parents[3] / "configs" / "sweeps").glob("*.yaml"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)


def write(**changes: Any) -> Path:
    content = {"name": "demo", "config": "base.yaml", "steps": 8, "cells": ROWS} | changes
    path = Path("sweep.yaml")
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))  # is YAML too
    return path


def sweep_of(*settings: str, **changes: Any) -> Sweep:
    return load_sweep(write(**changes), settings)


def play(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeChildren:
    children = FakeChildren(options.pop("dice", lambda given: 0.5), **options)
    monkeypatch.setattr(sweep_trial, "Children", lambda: children)
    return children


def at(lr: float | None = None, rows: Any = ROWS) -> dict[tuple[str, str], dict[str, Any]]:
    """Chosen values for all rows."""
    return {(ONE_TASK, row): {} if lr is None else {"train.lr": lr} for row in rows}


def best_at(lr: float) -> Any:
    return lambda given: 1 - abs(float(given["train.lr"]) - lr)


def two_parts(folder: Path, *, train: int = 40) -> Path:
    for part, count in (("train", train), ("val", 2)):
        for sub in ("images", "masks"):
            (folder / part / sub).mkdir(parents=True)
            for index in range(count):
                noise = np.random.default_rng((count, index)).integers(0, 256, (8, 9), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / sub / f"{part}{index:02d}.png")
    return folder


# the file


def test_every_problem_of_the_file_is_told_at_once() -> None:
    rows = {"gps": {"titel": "GPS", "title": "GPS"}, "b d": {"title": ""}}
    write(cells=rows, stepz=3, seeds=[0, "x"], jobs=0)
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml")
    text = str(caught.value)
    assert "config 'sweep.yaml' has 6 problems" in text
    assert "cells.gps.titel: unknown key. Did you mean 'title'? Keys of a row: title, overrides, grid, only." in text
    assert "stepz: unknown key. Did you mean 'steps'? Keys of the file: name, config, dir" in text
    assert 'seeds.1: "x", expected an integer' in text
    assert "jobs: 0, expected a value >= 1." in text
    assert 'cells.b d.title: "", expected text that is not empty' in text
    assert "cells.b d.[key]: " in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": {}}, "cells: {}, expected at least one row."),
        ({"seeds": []}, r"seeds: \[\], expected at least one seed, each once."),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\], expected at least one seed, each once."),
        ({"grid": {"train.lr": []}}, r"grid.train.lr: \[\], expected at least one value, each once."),
        ({"grid": {"train.lr": [1, 1]}}, r"grid.train.lr: \[1, 1\], expected at least one value, each once."),
        ({"cells": {"a": {"title": "A", "grid": {"train.lr": []}}}}, r"cells.a.grid.train.lr: \[\], expected at least"),
        ({"cells": {"a": {"title": "A", "only": ["x"]}}}, r"cells.a.only: \['x'\], .* none, as there is no `tasks:`"),
        ({"rows": ["gp"]}, r"rows: \['gp'\], expected names of `cells`: linear, gps"),
        ({"rows": []}, r"rows: \[\], expected names of `cells`: linear, gps"),
        ({"rows": ["a"], "cells": {**ROWS, "a": {"title": "A", "only": []}}}, "rows: no row runs any task"),
        ({"steps": 0}, "steps: 0, expected a value >= 1"),
        ({"protocol": "test"}, "protocol: \"test\", expected 'validate' or 'retrain'"),
        ({"choose_on": 1.0}, "choose_on: 1.0, expected a value < 1"),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(**changes)


def test_some_rows_run_now_in_the_order_of_the_file() -> None:
    rows = {name: {"title": name} for name in ("a", "b", "c")}
    sweep = sweep_of("rows=[c, a]", cells=rows, tasks={"x": {"title": "X"}, "y": {"title": "Y"}})
    assert sweep.places == [("x", "a"), ("x", "c"), ("y", "a"), ("y", "c")]
    assert list(sweep.cells) == ["a", "b", "c"]  # the table keeps a place for all


def test_a_file_that_is_no_mapping_or_is_missing() -> None:
    Path("sweep.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"expected sections such as `name:`, `config:`, `dir:`, found list"):
        load_sweep("sweep.yaml")
    with pytest.raises(ConfigError, match=r"config file 'none.yaml' does not exist"):
        load_sweep("none.yaml")


def test_a_repeated_key_is_a_problem() -> None:
    Path("sweep.yaml").write_text("name: a\nname: b\nconfig: base.yaml\nsteps: 1\ncells: {a: {title: A}}\n")
    with pytest.raises(ConfigError, match=r"sweep.yaml:1  name: occurs twice \(again in line 2\)"):
        load_sweep("sweep.yaml")


def test_settings_go_to_the_sweep_or_to_all_rows() -> None:
    rows = ROWS | {"own": {"title": "Own", "overrides": ["train.batch=3", "data.prompt=box"]}}
    sweep = sweep_of(
        "steps=5", "seeds=[7]", "train.batch=2", cells=rows, overrides={"train.batch": 4, "train.clip": 2.0}
    )
    assert (sweep.steps, sweep.seeds) == (5, (7,))
    configs = {cell.row: cell.config for cell in plan(sweep, at(rows=sweep.cells))}
    assert [configs[row].train.batch for row in ("linear", "gps", "own")] == [2, 2, 3]  # a row knows best
    assert configs["own"].data.prompt == "box"
    assert all(c.train.clip == 2 and c.train.steps == 5 and c.run.seed == 7 for c in configs.values())


def test_a_mapping_replaces_the_block() -> None:
    Path("base.yaml").write_text(BASE + "select: {name: gps, per_neuron: 3, level: layer}\n")
    configs = {cell.row: cell.config for cell in plan(sweep_of(), at())}
    assert configs["linear"].select.options == {}
    assert configs["gps"].select.options["level"] == "neuron"


def test_the_written_file_reads_back_equal() -> None:
    sweep = sweep_of("data.dir=x", grid={"train.lr": [1e-3, 1]}, choose_on=0.5)
    Path("again.yaml").write_text(sweep.to_yaml())
    assert load_sweep("again.yaml") == sweep


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_sweeps_can_be_planned(path: Path) -> None:
    sweep = load_sweep(path, ["data.dir=pictures"])
    assert sweep.name == path.stem
    assert f"--config configs/sweeps/{path.name}" in path.read_text()
    cells = plan(sweep, first_values(sweep))
    assert len(cells) == len(sweep.places) * len(sweep.seeds)
    assert len({cell.name for cell in [*cells, *plan_grid(sweep)]}) == len(cells) + len(plan_grid(sweep))


# the plan


def test_wrong_options_in_any_row_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"title": "Bad", "overrides": {"select": {"name": "gps", "per_neuro": 1}}}
    children = play(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        run_sweep(sweep_of(cells=ROWS | {"x": bad, "y": bad, "z": {"title": "Z", "overrides": {"train.lr": -1.0}}}))
    text = str(caught.value)
    assert "sweep 'demo' can't run:" in text
    assert "cells.x, cells.y: config 'base.yaml' has 1 problem" in text and "Did you mean 'per_neuron'?" in text
    assert "cells.z: config 'base.yaml' has 1 problem" in text and "train.lr: -1" in text
    assert children.started == [] and not Path("runs").exists()


def test_a_wrong_value_of_the_grid_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    children = play(monkeypatch)
    with pytest.raises(ConfigError, match=r"train.lrr: unknown key. Did you mean 'lr'"):
        run_sweep(sweep_of(grid={"train.lrr": [1, 2]}))
    assert children.started == []


def test_the_first_seed_of_all_rows_comes_first() -> None:
    cells = plan(sweep_of(seeds=[0, 3]), at())
    assert [cell.name for cell in cells] == ["linear_0", "gps_0", "linear_3", "gps_3"]
    assert cells[3].folder == Path("runs/sweeps/demo/cells/gps_3") and cells[3].config.run.seed == 3


def test_the_grid_has_one_seed_a_share_of_the_steps_and_its_own_values() -> None:
    rows = ROWS | {"full": {"title": "Full", "overrides": {"select": {"name": "full"}}, "grid": {"train.lr": [0.5]}}}
    sweep = sweep_of(cells=rows, grid={"train.lr": [1e-3, 3e-3]}, seeds=[4, 5], grid_share=0.3)
    cells = plan_grid(sweep)
    assert [cell.name for cell in cells] == [
        f"grid_{row}_{lr}" for row in ROWS for lr in (0.001, 0.003)
    ]  # one: no choice
    assert {(c.config.train.steps, c.config.run.seed) for c in cells} == {(2, 4)}
    assert plan(sweep, at(0.5, ["full"]))[0].config.train.lr == 0.5


def test_the_grid_never_opens_what_is_reported(tmp_path: Path) -> None:
    data = two_parts(tmp_path / "data")
    sweep = sweep_of(f"data.dir={data}", choose_on=0.1, grid={"train.lr": [1e-3, 3e-3]})
    sweep.folder.mkdir(parents=True)
    save_choice(sweep, 0.1)
    names = choice_list(sweep).read_text().split()
    assert len(names) == 4
    for cell in plan_grid(sweep):
        assert cell.config.eval.split == "val" and cell.config.data.val == choice_list(sweep)
    for cell in plan(sweep, at(1e-3)):
        assert cell.config.eval.split == "test"
        assert cell.config.data.dir == data / "train" and cell.config.data.test == data / "val"
    save_choice(sweep, 0.1)
    assert choice_list(sweep).read_text().split() == names  # the same each time


def test_grid_and_cells_train_on_the_same_images(tmp_path: Path) -> None:
    from samtune.data.splits import Given
    from samtune.tasks.masks.splits import resolve_split

    data = tmp_path / "data"
    write_data(data / "train", train=12, val=0, test=0)
    write_data(data / "val", train=2, val=0, test=0, seed=1)
    sweep = sweep_of(f"data.dir={data}", choose_on=0.25, grid={"train.lr": [1e-3, 3e-3]})
    sweep.folder.mkdir(parents=True)
    save_choice(sweep, 0.25)
    parts = []
    for cell in (plan_grid(sweep)[0], plan(sweep, at(1e-3))[0]):
        config = cell.config.data
        parts.append(resolve_split(config.dir, split="ratio", given=Given(val=config.val, test=config.test)))
    assert [len(part.train) for part in parts] == [9, 9]
    assert [pair.name for pair in parts[0].train] == [pair.name for pair in parts[1].train]
    assert [pair.image.parents[1].name for pair in parts[1].test] == ["val", "val"]


def test_near_duplicates_are_on_one_side_of_the_choice(tmp_path: Path) -> None:
    data = two_parts(tmp_path / "data", train=10)
    for path in sorted((data / "train").rglob("*.png")):
        Image.open(path).save(path.with_name(f"{path.stem}x.png"))
    sweep = sweep_of(f"data.dir={data}", choose_on=0.35)
    sweep.folder.mkdir(parents=True)
    save_choice(sweep, 0.35)
    names = choice_list(sweep).read_text().split()
    assert len(names) == 6 and names[1::2] == [f"{name}x" for name in names[::2]]


def test_a_choice_part_without_a_pair_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(f"data.dir={two_parts(tmp_path / 'data', train=9)}", choose_on=0.1)
    with pytest.raises(DataError, match=r"has 9 pairs, and choose_on: 0.1 takes none of them. Raise choose_on"):
        save_choice(sweep, 0.1)


def test_a_choice_part_needs_train_and_val(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train is not a usable data folder"):
        run_sweep(sweep_of(f"data.dir={tmp_path}", choose_on=0.1))


def test_what_needs_the_same_scores_shares_a_file() -> None:
    spt = {"title": "SPT", "overrides": {"select": {"name": "spt", "tau": 100}}}
    grft = {"title": "GRFT", "overrides": {"select": {"name": "grft"}}}
    sweep = sweep_of(cells=ROWS | {"grft": grft, "spt": spt}, seeds=[0, 1], grid={"train.lr": [1e-3, 3e-3]})
    final = {c.name: c.config.score.file for c in plan(sweep, at(1e-3, sweep.cells))}
    grid = {c.name: c.config.score.file for c in plan_grid(sweep)}
    assert final["linear_0"] is None
    assert final["gps_0"] == final["grft_0"] == grid["grid_gps_0.001"] == grid["grid_gps_0.003"]
    assert len({final[name] for name in ("gps_0", "gps_1", "spt_0", "spt_1")}) == 4
    assert final["gps_0"] is not None and final["gps_0"].parent == Path("runs/sweeps/demo/scores").resolve()
    other = plan(sweep.model_copy(update={"overrides": ("score.batch=2",)}), at(1e-3, ["gps"]))
    assert other[0].config.score.file != final["gps_0"]


def test_a_score_file_of_the_users_is_kept() -> None:
    cells = plan(sweep_of("score.file=mine.safetensors"), at())
    assert cells[1].config.score.file == Path("mine.safetensors")


# the runs


def test_the_best_value_of_the_grid_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    children = play(monkeypatch, dice=best_at(0.2))
    rows = ROWS | {
        "full": {"title": "Full", "overrides": {"select": {"name": "full"}}, "grid": {"train.lr": [0.02, 0.2]}}
    }
    result = run_sweep(sweep_of(cells=rows, grid={"train.lr": [0.1, 0.2, 0.4]}, grid_extend=0, seeds=[0, 1]))
    assert (result.finished, result.failed) == (6, {})
    assert len(children.started) == 3 + 3 + 2 + 6
    cells = {p.parent.name: json.loads(p.read_text()) for p in result.folder.glob("cells/*/cell.json")}
    assert {cell["lr"] for cell in cells.values()} == {0.2}
    assert [cells[name]["edge"] for name in ("linear_0", "gps_1", "full_0")] == [False, False, True]
    gps = cells["gps_1"]
    assert (gps["title"], gps["seed"], gps["steps"], gps["memory_mib"], gps["choice"]) == ("GPS", 1, 2, 321, 1.0)
    assert (gps["select_seconds"], gps["select_memory_mib"]) == (0.5, 12.0)
    assert (gps["values"], gps["test_seconds"], gps["test_memory_mib"]) == ({"train.lr": 0.2}, 1.5, 99.0)
    assert gps["overrides"] == ['select={"name": "gps", "per_neuron": 2}']
    assert (result.folder / "cells/gps_1/merged.safetensors").is_file()
    assert not (result.folder / "grid/gps_0.1/merged.safetensors").exists()
    assert load_sweep(result.folder / "sweep.yaml").seeds == (0, 1)


def test_a_command_is_what_a_user_would_type(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    run_sweep(sweep_of())
    command = Path("runs/sweeps/demo/logs/gps_0.log").read_text()
    assert command.startswith(f"{sys.executable} -m samtune finetune --config base.yaml track.mlflow=false ")
    assert command.endswith("--run-dir runs/sweeps/demo/cells/gps_0 --resume auto")


def test_a_finished_cell_is_never_run_again_a_killed_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    children = play(monkeypatch)
    sweep = sweep_of(seeds=[0, 1])
    run_sweep(sweep)
    (sweep.folder / "cells/gps_1/cell.json").unlink()  # what a killed run looks like
    children.started.clear()
    assert run_sweep(sweep).finished == 4
    assert children.started == ["cells/gps_1"]


def test_a_cell_of_other_settings_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    children = play(monkeypatch)
    run_sweep(sweep_of())
    children.started.clear()
    with pytest.raises(
        RunFolderError, match=r"linear_0 was run with train.steps=8, not 9\. Choose another --out, or delete it"
    ):
        run_sweep(sweep_of("steps=9"))
    assert children.started == []
    run_sweep(sweep_of("score.file=other.safetensors"))  # where scores are kept is no setting of the result


def test_a_failed_cell_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    children = play(monkeypatch, code=lambda name: 5 if name == "cells/linear_0" else 0)
    result = run_sweep(sweep_of(seeds=[0, 1], jobs=2))
    assert result.finished == 3
    log = Path("runs/sweeps/demo/logs/linear_0.log").resolve()
    assert result.failed == {"linear_0": Failure(log, "the disk is full")}
    children.code = lambda name: 0
    children.started.clear()
    assert run_sweep(sweep_of(seeds=[0, 1])).failed == {}
    assert children.started == ["cells/linear_0"]


def test_a_row_whose_grid_failed_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    children = play(monkeypatch, code=lambda name: 7 if name == "grid/gps_0.2" else 0)
    result = run_sweep(sweep_of(grid={"train.lr": [0.1, 0.2]}))
    assert list(result.failed) == ["grid_gps_0.2"]
    assert [name for name in children.started if name.startswith("cells")] == ["cells/linear_0"]
    assert "gps is left out: its grid is not complete" in caplog.text


def test_the_first_of_equal_values_wins_and_an_undefined_one_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    sweep = sweep_of(grid={"train.lr": [0.1, 0.2, 0.3]})
    run_sweep(sweep)
    grid = plan_grid(sweep)
    assert best_values(sweep, grid) == at(0.1)
    path = grid[0].folder / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"choice": None}))
    assert best_values(sweep, grid)[ONE_TASK, "linear"] == {"train.lr": 0.2}
