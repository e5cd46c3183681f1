"""Runs a sweep: every cell is one `samtune finetune` in a process of its own.

First the grid, a value for each row; then the cells of the table. A finished cell is never run again; one that failed
or was killed is. Everything is chosen on the choice part; what is reported is opened by the cells of the table alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samtune import console
from samtune.children import Children
from samtune.errors import ConfigError, DataError, RunFolderError
from samtune.runfolder import disk_errors
from samtune.sweepconfig import Cell, Sweep, choice_lists, data_folder, plan
from samtune.tracking import flatten

logger = logging.getLogger(__name__)

CHOICE_SEED = 352  # of the choice part: the same images in every sweep


@dataclass(frozen=True)
class SweepResult:
    """What `run_sweep` returns.

    Attributes:
        folder: of the sweep; `compare` reads it.
        finished: number of finished cells of the table, those of earlier calls too.
        failed: log file of each failed cell, by its name.
    """

    folder: Path
    finished: int
    failed: dict[str, Path]


def run_sweep(sweep: Sweep) -> SweepResult:
    """Runs the cells of a sweep that are not finished.

    Args:
        sweep: of `load_sweep`.

    Returns:
        The folder and what failed; a row whose grid failed has no cells.

    Raises:
        ConfigError: a wrong setting in any row.
        DataError: no train/ or val/ where a choice part is wanted.
        RunFolderError: a cell was run with other settings.
    """
    folder = sweep.folder
    grid = plan(sweep)
    # every mistake shows now: of the configs, and of what they select
    check_rows(plan(sweep, {row: next(iter(sweep.values(row)), None) for row in sweep.cells}))
    with disk_errors(folder):
        for sub in ("grid", "cells", "logs", "scores"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        (folder / "sweep.yaml").write_text(sweep.to_yaml(), encoding="utf-8")
    if sweep.choose_on is not None:
        save_choice(sweep, sweep.choose_on)
    failed = run_cells(grid, sweep)
    cells = plan(sweep, best_values(sweep, grid))
    failed |= run_cells(cells, sweep)
    return SweepResult(folder, sum(_result_file(cell).is_file() for cell in cells), failed)


def check_rows(cells: list[Cell]) -> None:
    """Refuses rows whose selector does not fit their model; no weights are made for that.

    Raises:
        ConfigError: the problems of every row, at once.
    """
    import torch  # late, as below: planning a sweep needs neither

    from samtune.models.sam import SamModel
    from samtune.selection import check_select

    problems = {}
    for cell in cells:
        config, choice = cell.config, cell.config.select
        if cell.row in problems or choice.file is not None:
            continue
        with torch.device("meta"):
            model = SamModel(config.model.name, config.model.image_size)
        try:
            check_select(model, name=choice.name, budget=choice.budget, exclude=config.tune.exclude, **choice.options)
        except ConfigError as error:
            problems[cell.row] = f"cells.{cell.row}: {error}"
    if problems:
        raise ConfigError("\n".join(problems.values()))


def save_choice(sweep: Sweep, share: float) -> None:
    """Writes the names of the part of train that choices are made on; the same on every machine.

    Raises:
        DataError: no train/ or val/ with pairs in the data folder, or too few pairs to take a part of.
    """
    from samtune.data import find_pairs  # late: it imports what augments pictures

    data, lists = data_folder(sweep), choice_lists(sweep)
    names = [pair.name for pair in find_pairs(data / "train")]
    find_pairs(data / "val")
    chosen = sorted(np.random.default_rng(CHOICE_SEED).permutation(names)[: int(len(names) * share)])
    if len(chosen) < 2:
        raise DataError(
            f"{data / 'train'} has {len(names)} pairs, and choose_on: {share:g} takes {len(chosen)} of them. "
            "It must take at least 2: raise choose_on."
        )
    for name, part in (("choice", chosen), ("grid_val", chosen[1:]), ("grid_test", chosen[:1])):
        with disk_errors(sweep.folder):
            lists[name].write_text("\n".join([*part, ""]), encoding="utf-8")


def run_cells(cells: list[Cell], sweep: Sweep) -> dict[str, Path]:
    """Runs those of the cells that are not finished, `sweep.jobs` at once; a failure does not stop the others.

    Returns:
        Log file of each failed cell, by its name.

    Raises:
        RunFolderError: a cell was run with other settings.
    """
    waiting = [cell for cell in cells if not is_finished(cell)]
    failed: dict[str, Path] = {}
    if not waiting:
        return failed
    children = Children()
    title = "grid" if waiting[0].in_grid else "cells"
    with ThreadPoolExecutor(sweep.jobs) as pool, console.progress(title, len(waiting)) as advance:
        logs = {cell.name: (sweep.folder / "logs" / f"{cell.name}.log").resolve() for cell in waiting}
        threads = max(1, _cores() // sweep.jobs)
        futures = {pool.submit(run_cell, cell, logs[cell.name], threads, children): cell for cell in waiting}
        try:
            for future in as_completed(futures):
                cell = futures[future]
                code = future.result()
                if code:
                    failed[cell.name] = logs[cell.name]
                    logger.error("%s failed with exit code %d; see %s", cell.name, code, logs[cell.name])
                advance(1, cell=cell.name)
        except BaseException:  # Ctrl-C and SIGTERM arrive here
            children.stop()
            raise
    return failed


def run_cell(cell: Cell, log: Path, threads: int, children: Children) -> int:
    """Runs one fine-tuning and writes `cell.json` beside it; returns the exit code."""
    command = [sys.executable, "-m", "samtune", "finetune", "--config", str(cell.base), *cell.overrides]
    start = time.monotonic()
    code = children.run([*command, "--run-dir", str(cell.folder), "--overwrite"], log, threads)
    if code:
        return code
    if cell.in_grid:
        for name in ("merged.safetensors", "bundle.safetensors"):  # of the grid only the choice counts
            (cell.folder / name).unlink(missing_ok=True)
    lines = (cell.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    fit = next(event for event in events if event["split"] == "fit")
    result = {
        "name": cell.name,
        "row": cell.row,
        "title": cell.title,
        "overrides": cell.changes,
        "lr": cell.config.train.lr,
        "value": cell.value,
        "edge": cell.edge,
        "seed": cell.config.run.seed,
        "steps": max(event["step"] for event in events),
        # of the training alone: scores are shared, and imports and pictures are no cost of a method
        "seconds": round(fit["seconds"], 1),
        "memory_mib": round(fit["memory_mib"]),
        "choice_mDice": max(
            (e["mDice"] for e in events if e["split"] == "val" and e["mDice"] is not None), default=None
        ),
        "settings": _settings(cell),
    }
    # whole or not at all: its presence is what says that the cell is finished
    unfinished = cell.folder / "cell.json.tmp"
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(_result_file(cell))
    logger.info("%s: %.0f s", cell.name, time.monotonic() - start)
    return 0


def is_finished(cell: Cell) -> bool:
    """Tells whether a cell was run.

    Raises:
        RunFolderError: it was run with other settings, and is no result of this sweep.
    """
    if not _result_file(cell).is_file():
        return False
    found = _read_result(cell)["settings"]
    wanted = _settings(cell)
    # a key that only one of them has came with another version
    other = [f"{k}={found[k]}, not {wanted[k]}" for k in wanted.keys() & found.keys() if wanted[k] != found[k]]
    if other:
        raise RunFolderError(
            f"{cell.folder} was run with {'; '.join(sorted(other))}. Choose another --out, or delete that folder."
        )
    return True


def best_values(sweep: Sweep, grid: list[Cell]) -> dict[str, Any]:
    """Returns for each row the value with the best Dice on the choice part; the first of equals.

    A row with an unfinished cell in its grid is left out: a choice among the rest would not be the grid's.
    """
    best: dict[str, Any] = {}
    for row in sweep.cells:
        cells = [cell for cell in grid if cell.row == row]
        if not cells:
            best[row] = next(iter(sweep.values(row)), None)
        elif all(_result_file(cell).is_file() for cell in cells):
            best[row] = max(cells, key=_choice).value
        else:
            logger.warning("row %s is left out: its grid is not complete", row)
    return best


def _result_file(cell: Cell) -> Path:
    return cell.folder / "cell.json"


def _read_result(cell: Cell) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(_result_file(cell).read_text(encoding="utf-8"))
    return result


def _choice(cell: Cell) -> float:
    dice = _read_result(cell)["choice_mDice"]
    return -1.0 if dice is None else float(dice)


def _settings(cell: Cell) -> dict[str, str]:
    """Returns what decides the result of a cell: where scores are kept does not."""
    settings = flatten(cell.config.model_dump(mode="json"))
    settings.pop("score.file", None)
    return settings


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
