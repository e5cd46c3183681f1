"""The runner of the Kvasir table: what it chooses, and that cells that were not run stay empty."""

from __future__ import annotations

import json
from pathlib import Path

from kvasir_table import GRID, best_rate, table


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
