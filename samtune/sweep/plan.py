"""The runs that a sweep asks for: every one is planned and its config checked before the first one starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samtune.base.paths import find_path
from samtune.config.sections import Config, Train
from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.selection import SELECTORS
from samtune.sweep.settings import Sweep, value_text
from samtune.tasks.table import TASKS

Point = dict[str, Any]  # key of the config -> value, chosen by the grid
Place = tuple[str, str]  # task, row


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        task: short name of its task; `ONE_TASK` in a sweep without tasks.
        overrides: its changes to the base config, complete; `changes` are those of its row alone.
        in_grid: it serves the choice of values, and no table shows it.
        values: of the grid's keys; {} without a grid.
        edge: a value is the lowest or the highest that the grid tried, so the best one may lie beyond.
        warmup: `train.warmup` of the table's runs; a run of the grid, which is shorter, has as many steps of it.
    """

    name: str
    task: str
    row: str
    title: str
    folder: Path
    log: Path
    base: Path
    overrides: tuple[str, ...]
    changes: tuple[str, ...]
    config: Config
    in_grid: bool
    values: Point
    edge: bool
    warmup: float

    @property
    def place(self) -> Place:
        """Its (task, row)."""
        return self.task, self.row


def plan_grid(sweep: Sweep, points: Mapping[Place, Sequence[Point]] | None = None) -> list[Cell]:
    """Lists the runs that choose values, one seed each.

    Args:
        points: of each (task, row); None for those of the file. Of a single point there is nothing to choose.

    Raises:
        ConfigError: as `plan`.
    """
    if points is None:
        grids = {place: sweep.points(place[1]) for place in sweep.places}
        points = {place: grid for place, grid in grids.items() if len(grid) > 1}
    wanted = [(place, sweep.seeds[0], point) for place, grid in points.items() for point in grid]
    return _plan(sweep, wanted, in_grid=True)


def plan(sweep: Sweep, chosen: Mapping[Place, Point], grid: Sequence[Cell] = ()) -> list[Cell]:
    """Lists the runs that the table shows, with checked configs, in the order of running.

    Args:
        chosen: the values of each (task, row); the first seed of all comes first, what is not in it is left out.
        grid: the runs that they were chosen from.

    Raises:
        ConfigError: the problems of every row and task, at once.
    """
    places = [place for place in sweep.places if place in chosen]
    cells = _plan(sweep, [(place, seed, chosen[place]) for seed in sweep.seeds for place in places], in_grid=False)
    return [replace(cell, edge=at_edge(cell.values, of_place(grid, cell.place))) for cell in cells]


def of_place(cells: Sequence[Cell], place: Place) -> list[Cell]:
    """Returns the runs of one (task, row)."""
    return [cell for cell in cells if cell.place == place]


def at_edge(values: Point, tried: Sequence[Cell]) -> bool:
    """Tells whether one of the values is the lowest or the highest of those that were tried."""
    return any(end_of(value, [cell.values[key] for cell in tried]) for key, value in values.items())


def end_of(value: Any, tried: Sequence[Any]) -> int:
    """Returns -1 for the lowest of several numbers, 1 for the highest, else 0."""
    numbers = {v for v in tried if isinstance(v, int | float) and not isinstance(v, bool)}
    if len(numbers) < 2 or value not in numbers:
        return 0
    return -1 if value == min(numbers) else int(value == max(numbers))


def _plan(sweep: Sweep, wanted: Sequence[tuple[Place, int, Point]], *, in_grid: bool) -> list[Cell]:
    cells = []
    problems: dict[str, dict[str, None]] = {}  # message -> rows and tasks, each once
    shared: dict[Place, list[str]] = {}
    for place, seed, values in wanted:
        try:
            if place not in shared:
                shared[place] = _overrides(sweep, place, in_grid=in_grid)
            cells.append(_cell(sweep, place, seed, values, shared[place], in_grid=in_grid))
        except ConfigError as error:
            text = f"cells.{place[1]}" + (f" of tasks.{place[0]}" if place[0] else "")
            problems.setdefault(str(error), {})[text] = None
    if problems:
        lines = [f"{', '.join(places)}: {text}" for text, places in problems.items()]
        raise ConfigError("\n".join([f"sweep {sweep.name!r} can't run:", *lines]))
    return cells


def first_values(sweep: Sweep) -> dict[Place, Point]:
    """Returns the first values of the grid for each (task, row): a plan of them checks every config of the table."""
    return {place: sweep.points(place[1])[0] for place in sweep.places}


def choice_list(sweep: Sweep) -> Path:
    """Returns the file of names of the part of train that choices are made on, of a sweep with `choose_on`."""
    return sweep.folder.resolve() / "choice.txt"


def data_folder(sweep: Sweep) -> Path:
    """Returns the data folder of the base config with the changes for all runs."""
    return find_path(load_config(sweep.config, sweep.overrides).data.dir).resolve()


def _cell(sweep: Sweep, place: Place, seed: int, values: Point, shared: list[str], *, in_grid: bool) -> Cell:
    task, row = place
    own = f"{row}_{','.join(map(value_text, values.values()))}" if in_grid else f"{row}_{seed}"
    name = f"{task}/{'grid_' if in_grid else ''}{own}".lstrip("/")
    overrides = [*shared, f"run.seed={seed}", *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    config = load_config(sweep.config, overrides)
    warmup = config.train.warmup
    if in_grid:
        shorter = _shortened(sweep, config.train, values)
        overrides += [f"train.{key}={json.dumps(value)}" for key, value in shorter.items()]
        config = config.model_copy(update={"train": config.train.model_copy(update=shorter)})
    key = score_key(config)
    if key is not None and config.score.file is None:
        file = sweep.folder.resolve() / "scores" / f"{key}.safetensors"
        overrides.append(f"score.file={json.dumps(str(file))}")
        config = config.model_copy(update={"score": config.score.model_copy(update={"file": file})})
    return Cell(
        name=name,
        task=task,
        row=row,
        title=sweep.cells[row].title,
        folder=sweep.folder / ("grid" if in_grid else "cells") / task / own,
        log=(sweep.folder / "logs" / f"{name}.log").resolve(),
        base=sweep.config,
        overrides=tuple(overrides),
        changes=sweep.cells[row].overrides,
        config=config,
        in_grid=in_grid,
        values=values,
        edge=False,
        warmup=warmup,
    )


def _overrides(sweep: Sweep, place: Place, *, in_grid: bool) -> list[str]:
    """Returns the changes to the base config for a task and row, without seed and chosen values."""
    task, row = place
    of_task = sweep.tasks[task].overrides if sweep.tasks else ()
    of_all = ("track.mlflow=false", *sweep.overrides, *_parts(sweep))
    overrides = [*of_all, *of_task, *sweep.cells[row].overrides]
    config = load_config(sweep.config, overrides)
    if sweep.steps is not None:  # an epoch has at least a step, so that the steps are what ends a run
        overrides += [f"train.epochs={max(config.train.epochs, sweep.steps)}", f"train.steps={sweep.steps}"]
    overrides[1:1] = TASKS[config.task].load().quiet(in_grid=in_grid)
    if in_grid:
        overrides.append("eval.split=val")  # no choice ever opens what is reported
    elif sweep.protocol == "retrain":
        overrides.append("data.retrain=true")
    return overrides


def _shortened(sweep: Sweep, train: Train, values: Point) -> dict[str, float]:
    """Returns the changes of `train` that make a run of the table one of the grid: the same warm-up, fewer steps.

    With less warm-up than the table's runs a high rate diverges, and the choice would be of other runs than those.
    Without `train.steps` the epochs are counted. A length that the grid itself chooses, in `values`, is kept.
    """
    shorter: dict[str, float] = {}
    if train.steps is not None:
        shorter["steps"] = max(1, int(train.steps * sweep.grid_share))
    if sweep.steps is None:
        shorter["epochs"] = max(1, int(train.epochs * sweep.grid_share))
    shorter = {key: value for key, value in shorter.items() if f"train.{key}" not in values}
    unit, whole = ("epochs", train.epochs) if train.steps is None else ("steps", train.steps)
    length = shorter.get(unit, whole)
    rising = train.warmup * whole if train.steps is None else round(train.warmup * whole)
    if rising > length:
        raise ConfigError(
            f"grid_share: {sweep.grid_share:g} leaves the grid {length} {unit}, fewer than the {rising:g} in which the "
            f"rate rises in the table's runs. Raise grid_share, or lower train.warmup = {train.warmup:g}."
        )
    return shorter | {"warmup": rising / length}


def _parts(sweep: Sweep) -> list[str]:
    """Returns the overrides for the parts of the data: train, the choice part taken out of it, what is reported."""
    if sweep.choose_on is None:
        return []
    data = data_folder(sweep)
    parts = {"data.dir": data / "train", "data.val": choice_list(sweep), "data.test": data / "val"}
    return [f"{key}={json.dumps(str(path))}" for key, path in parts.items()]


def score_key(config: Config) -> str | None:
    """Names the scoring pass of a run's config: runs with one key need the same scores; None if it needs none.

    The name covers model, training images, loss, granularity, and the seed that the loss draws with.
    """
    needs = SELECTORS[config.select.name].needs(**config.select.options)
    if needs is None:
        return None
    data = config.data.model_dump(mode="json", exclude={"test", "workers", "cache"})
    how = config.score.model_dump(mode="json", exclude={"file"})
    covered = {"needs": asdict(needs), "model": config.model.model_dump(mode="json"), "data": data, "score": how}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:12]
    return f"{config.score.loss or needs.loss or needs.of}-{needs.per}-seed{config.run.seed}-{digest}"
