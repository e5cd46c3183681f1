"""The runner of the Kvasir table: what it chooses, and that cells that were not run stay empty."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path

import kvasir_table
import pytest
from kvasir_table import GRID, METHODS, Cell, best_rate, run_cell, run_cells, table


def cell(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True)
    base = {"seconds": 60, "peak_mib": 1000, "trainable": 5, "delta_bytes": 1000000, "lr": 1e-3}
    base |= {"mDice": 0.8, "mIoU": 0.7, "before": {"mDice": 0.2, "mIoU": 0.1}}
    (folder / "cell.json").write_text(json.dumps(base | values))


def test_the_rate_with_the_best_choice_dice_wins(tmp_path: Path) -> None:
    for lr, dice in zip(GRID, (0.5, 0.7, 0.6), strict=True):
        cell(tmp_path / f"grid_full_{lr:g}", lr=lr, choice_mDice=dice)
    assert best_rate(tmp_path, "full") == GRID[1]


def test_cells_that_were_not_run_stay_empty(tmp_path: Path) -> None:
    cell(tmp_path / "full_0")
    cell(tmp_path / "full_1", mDice=0.9)
    cell(tmp_path / "linear_0")
    text = table(tmp_path, 200)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines()[2:]}
    assert "0.850 ± 0.071 (2 seed)" in rows["Full"]
    assert rows["GPS, K = 1"].replace("|", "").replace("GPS, K = 1", "").strip() == ""
    assert "0.200" in rows["Before (untuned)"]
    assert rows["Linear (decoder only)"].count("|") == 9


def planned(name: str, tmp_path: Path, *, steps: int = 200, lr: float = 1e-3) -> Cell:
    return Cell(name, METHODS["full"], tmp_path / "chosen_on.txt", lr=lr, seed=0, steps=steps)


def test_a_finished_cell_is_kept_when_its_settings_are_the_wanted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvasir_table, "subprocess", None)  # nothing may start
    args = argparse.Namespace(out=tmp_path, data=tmp_path, jobs=1)
    cell(tmp_path / "full_0", steps=200)
    run_cell(args, planned("full_0", tmp_path))
    for other in (planned("full_0", tmp_path, steps=50), planned("full_0", tmp_path, lr=3e-4)):
        with pytest.raises(SystemExit, match=r"full_0 was run with 200 steps and lr 0\.001, not .*another --out"):
            run_cell(args, other)


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_an_error_no_further_cell_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    started = []
    failed = threading.Event()

    def fail_second(args: argparse.Namespace, cell: Cell) -> None:
        started.append(cell.name)
        if cell.name == "full_1":
            failed.set()
            raise SystemExit("full_1 failed")
        if jobs > 1:
            failed.wait(5)  # the other worker is busy until the error
            threading.Event().wait(0.1)

    monkeypatch.setattr(kvasir_table, "run_cell", fail_second)
    with pytest.raises(SystemExit, match="full_1 failed"):
        run_cells(argparse.Namespace(jobs=jobs), [planned(f"full_{seed}", tmp_path) for seed in range(6)])
    assert sorted(started) == ["full_0", "full_1"]
