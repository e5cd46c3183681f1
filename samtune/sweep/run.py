"""Runs a sweep: every cell is one `samtune finetune` in a process of its own.

First the grid, then the cells of the table. A finished cell is never run again; one that failed or was killed is.
Everything is chosen on validation images; test is opened by the cells of the table alone.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from samtune import console
from samtune.base.disk import disk_errors, write_text
from samtune.base.tracking import SweepLog
from samtune.data.splits import choose_part
from samtune.errors import ConfigError, DataError, RunFolderError, unknown_name
from samtune.models.backbone import Backbone
from samtune.run.settings import load_config
from samtune.selection import check_select
from samtune.sweep.extend import next_point
from samtune.sweep.plan import (
    Cell,
    Place,
    Point,
    at_edge,
    choice_list,
    data_folder,
    first_values,
    of_place,
    plan,
    plan_grid,
)
from samtune.sweep.ray import ray_engine
from samtune.sweep.settings import Sweep
from samtune.sweep.trial import (
    RunAll,
    TrialResult,
    had_less_warmup,
    is_finished,
    local_engine,
    read_result,
    result_file,
)
from samtune.tasks.table import TASKS, task_of

logger = logging.getLogger(__name__)

CHOICE_SEED = 352  # of the choice part: the same images in every sweep
ENGINES = {"local": local_engine, "ray": ray_engine}


@dataclass(frozen=True)
class Failure:
    """A run that failed: its log file, and the last error in it."""

    log: Path
    error: str


@dataclass(frozen=True)
class SweepResult:
    """The number of finished cells of the table, those of earlier calls too, and each failed cell by its name."""

    folder: Path
    finished: int
    failed: dict[str, Failure]


def run_sweep(sweep: Sweep, *, engine: str = "local", address: str | None = None) -> SweepResult:
    """Runs the cells of a sweep that are not finished; a row whose grid failed in a task has no cells there.


    Raises:
        ConfigError: a wrong setting in any row or task, or an engine that can't be used.
        DataError: no train/ or val/ where a choice part is wanted.
        RunFolderError: a cell was run with other settings, or another sweep runs in the folder.
    """
    if engine not in ENGINES:
        raise ConfigError(unknown_name("engine", engine, ENGINES))
    folder, grid, table = sweep.folder, plan_grid(sweep), plan(sweep, first_values(sweep))
    check_rows(table)  # every mistake shows now: of the configs, and of what they select
    finished = [cell for cell in grid if is_finished(cell)]  # refuses other settings, before anything here changes
    if old := sum(map(had_less_warmup, finished)):
        logger.warning(
            "%d finished runs of the grid had less warm-up than the table's; another --out chooses anew", old
        )
    with disk_errors(folder):
        for sub in ("grid", "cells", "logs", "scores"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
    track = table[0].config.track
    params = sweep.model_dump(mode="json")
    with (
        _alone(folder),
        ENGINES[engine](jobs=sweep.jobs, folder=folder, address=address) as run_all,
        SweepLog(folder, mlflow=track.mlflow, experiment=track.experiment, name=sweep.name, params=params) as log,
    ):
        write_text(folder / "sweep.yaml", sweep.to_yaml())
        if sweep.choose_on is not None:
            save_choice(sweep, sweep.choose_on)
        failed = run_cells(_with_parent(grid, log.run_id), run_all)
        while further := further_cells(sweep, grid):
            failed |= run_cells(_with_parent(further, log.run_id), run_all)
            grid += further
        cells = plan(sweep, best_values(sweep, grid), grid)
        failed |= run_cells(_with_parent(cells, log.run_id), run_all)
        log.end(_means(cells), failed=bool(failed))
    return SweepResult(folder, sum(result_file(cell).is_file() for cell in cells), failed)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second sweep out of a folder; the system gives the lock back when a process ends, however it does."""
    import fcntl  # not on Windows, where nothing else of a sweep runs either

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise RunFolderError(f"another sweep runs in {folder}. Wait for it, or choose another --out.") from err
        yield


def check_rows(cells: list[Cell]) -> None:
    """Refuses rows whose selector does not fit their model; no weights are made for that.

    Raises:
        ConfigError: the problems of every row, at once.
    """
    problems, models, checked = dict[str, str](), dict[str, Backbone](), set()
    for cell in cells:
        config, choice, name = cell.config, cell.config.select, cell.config.model.model_dump_json()
        case = (cell.row, name, choice.model_dump_json(), config.tune.exclude)
        if cell.row in problems or choice.file is not None or case in checked:
            continue
        checked.add(case)
        if name not in models:
            models[name] = task_of(config).skeleton()
        limits: dict[str, Any] = {"budget": choice.budget, "exclude": config.tune.exclude}
        try:
            check_select(models[name], name=choice.name, **limits, **choice.options)
        except ConfigError as error:
            problems[cell.row] = f"cells.{cell.row}: {error}"
    if problems:
        raise ConfigError("\n".join(problems.values()))


def save_choice(sweep: Sweep, share: float) -> None:
    """Writes the names of the part of train that choices are made on; the same on every machine.

    Raises:
        DataError: no train/ or val/ with pairs, or too few pairs to take a part of.
    """
    task, data = TASKS[load_config(sweep.config, sweep.overrides).task].load(), data_folder(sweep)
    pairs = task.items(data / "train")
    task.items(data / "val")
    chosen = choose_part(pairs, share, CHOICE_SEED)
    if not chosen:
        few = f"{data / 'train'} has {len(pairs)} pairs, and choose_on: {share:g} takes none of them"
        raise DataError(f"{few}. Raise choose_on.")
    write_text(choice_list(sweep), "\n".join([*chosen, ""]))


def run_cells(cells: list[Cell], run_all: RunAll) -> dict[str, Failure]:
    """Runs those of the cells that are not finished; returns the failed ones by name, which stop no others.

    Raises:
        RunFolderError: a cell was run with other settings.
    """
    waiting, failed = {cell.name: cell for cell in cells if not is_finished(cell)}, dict[str, Failure]()
    if not waiting:
        return failed
    with console.progress("grid" if cells[0].in_grid else "cells", len(waiting)) as advance:

        def done(result: TrialResult) -> None:
            name = result["name"]
            if result["code"]:
                failed[name] = Failure(waiting[name].log, result["error"])
                logger.error("%s failed with exit code %d: %s", name, result["code"], result["error"])
            advance(1, cell=name)

        run_all(list(waiting.values()), done)
    return failed


def further_cells(sweep: Sweep, grid: list[Cell]) -> list[Cell]:
    """Returns runs of the next values of each (task, row) whose best one is the lowest or highest that was tried.

    What has `grid_extend` further values already has no more, nor has an incomplete grid.
    """
    cells = list[Cell]()
    for place in dict.fromkeys(cell.place for cell in grid):
        tried = of_place(grid, place)
        if not _complete(tried):
            continue
        best, ranked = max(tried, key=_choice), [(cell, _choice(cell)) for cell in tried]
        point = next_point(best, _choice(best), ranked)
        if point is None or len(tried) - len(sweep.points(place[1])) >= sweep.grid_extend:
            continue
        try:
            cells += plan_grid(sweep, {place: [point]})
        except ConfigError as error:
            logger.info("%s: nothing beyond %s can be tried: %s", _place_text(place), best.values, error)
        else:
            logger.info("%s: the best value is at the end of its grid; %s is next", _place_text(place), point)
    return cells


def best_values(sweep: Sweep, grid: list[Cell]) -> dict[Place, Point]:
    """Returns for each (task, row) the point of its grid that is best on validation images; the first of equals.

    What has an unfinished cell in its grid is left out: a choice among the rest would not be the grid's.
    """
    best = {}
    for place, first in first_values(sweep).items():
        cells = of_place(grid, place)
        if not cells:
            best[place] = first
        elif _complete(cells):
            best[place] = max(cells, key=_choice).values
            if at_edge(best[place], cells):
                text = "%s: %s is the best of %d values, and at their end: a better one may lie beyond"
                logger.warning(text, _place_text(place), best[place], len(cells))
        else:
            logger.warning("%s is left out: its grid is not complete", _place_text(place))
    return best


def _complete(cells: list[Cell]) -> bool:
    return all(result_file(cell).is_file() for cell in cells)


def _choice(cell: Cell) -> float:
    value = read_result(cell)["choice"]
    return -1.0 if value is None else float(value)  # a run without a defined value loses


def _with_parent(cells: list[Cell], run_id: str | None) -> list[Cell]:
    """Returns the cells with the MLflow run that they belong to."""
    given = () if run_id is None else (f"track.parent={run_id}",)
    return [replace(cell, overrides=(*cell.overrides, *given)) for cell in cells]


def _means(cells: list[Cell]) -> Mapping[str, float]:
    """Returns the mean over the seeds of the reported values, by `task/row/name`."""
    values: dict[str, list[float]] = {}
    for cell in (cell for cell in cells if result_file(cell).is_file()):
        report = json.loads((cell.folder / "metrics.json").read_text(encoding="utf-8"))
        for name in (name for name in report["ci95"] if report[name] is not None):
            values.setdefault(f"{_place_text((cell.task, cell.row))}/{name}", []).append(report[name])
    return {name: fmean(found) for name, found in values.items()}


def _place_text(place: Place) -> str:
    return "/".join(part for part in place if part)
