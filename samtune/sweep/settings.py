"""The settings of a sweep: a base config, the rows of a table and, if there are several, its columns, with changes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field

from samtune.config.load import read_model
from samtune.config.problems import Fault, KeyPath, Problems
from samtune.config.sections import Names, PathText, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a row or task; it becomes part of a folder's name
PLACES = ("data", "data.dir", "data.train", "data.val", "data.test", "data.name")
ONE_TASK = ""  # the name of the task in a sweep without `tasks`


def _as_texts(value: Any) -> Any:
    """Turns `key: value` into the `key=value` of the command line, where a mapping replaces the whole block."""
    if isinstance(value, Mapping):
        return tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
    return () if value is None else value


Overrides = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_texts)]
Values = Annotated[tuple[float | int | bool | str, ...], Field(strict=False)]
Name = Annotated[str, Field(pattern=NAME)]


class SweepTask(Section):
    """One entry of `tasks`: a column of the table."""

    title: str = Field(min_length=1, description="what the table calls this column")
    group: str | None = Field(None, min_length=1, description="the tasks of a group get a mean of their own")
    overrides: Overrides = Field((), description="changes to the config, after those of all runs")


class SweepRow(Section):
    """One entry of `cells`: a row of the table."""

    title: str = Field(min_length=1, description="what the table calls this row")
    overrides: Overrides = Field((), description="changes to the config, after those of the task")
    grid: dict[str, Values] | None = Field(None, description="keys and values, instead of those of the sweep's grid")
    only: Names | None = Field(None, description="the tasks that this row runs, [] for none; empty: all")


class Sweep(Section):
    """All settings of one sweep."""

    name: Name = Field(description="name of the sweep")
    config: PathText = Field(description="the base config file")
    dir: PathText | None = Field(None, description="folder of everything; empty: runs/sweeps/NAME")
    overrides: Overrides = Field((), description="changes to the config for all runs")
    tasks: dict[Name, SweepTask] | None = Field(None, description="columns of the table by short name; empty: one")
    cells: dict[Name, SweepRow] = Field(description="rows of the table by short name")
    rows: Names | None = Field(None, description="short names of the rows that run now, others may later; empty: all")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = Field(
        (0,), description="one run of each row and task per seed"
    )
    steps: int | None = Field(None, ge=1, description="train.steps of the table's runs; empty: the config's epochs")
    grid: dict[str, Values] | None = Field(None, description="keys of the config and the values to choose from")
    grid_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="part of the steps that a run of the grid takes, warm-up apart"
    )
    grid_extend: int = Field(
        3, ge=0, description="at most so many further values beyond the end of a grid on which the best one lies"
    )
    choose_on: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="part of DIR/train to choose on, DIR/val is reported; empty: the data's own val and test"
    )
    protocol: Literal["validate", "retrain"] = Field(
        "validate", description="retrain: with the chosen values, train on train and val together"
    )
    jobs: int = Field(1, ge=1, description="runs at once")

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with the table and the grids."""
        yield from super().faults()
        yield from self._table_faults()
        yield from self._grid_faults()

    def _table_faults(self) -> Iterator[Fault]:
        if not self.cells:
            yield Fault("cells", "{}, expected at least one row.")
        if self.tasks == {}:
            yield Fault("tasks", "{}, expected at least one task; leave out `tasks:` if there is one only.")
        if not set(self.rows or self.cells) <= set(self.cells) or self.rows == ():
            yield Fault("rows", f"{list(self.rows or ())}, expected names of `cells`: {', '.join(self.cells)}.")
        elif self.cells and not self.places:
            place = "rows" if self.rows else "cells"
            yield Fault(place, "no row runs any task, expected one whose `only` names a task.")
        titles = [task.title for task in (self.tasks or {}).values()]
        if len(set(titles)) < len(titles):
            yield Fault("tasks", f"titles {titles}, expected another one for each task.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield Fault("seeds", f"{list(self.seeds)}, expected at least one seed, each once.")
        for name, task in (self.tasks or {}).items() if self.choose_on is not None else ():
            if own := [text for text in task.overrides if text.partition("=")[0] in PLACES]:
                wrong = f"{own}, expected no data of its own with choose_on, which cuts those of `config:`."
                yield Fault(f"tasks.{name}.overrides", wrong)
        for name, row in self.cells.items():
            if not set(row.only or ()) <= set(self.tasks or ()):
                known = ", ".join(self.tasks or {}) or "none, as there is no `tasks:`"
                yield Fault(f"cells.{name}.only", f"{list(row.only or ())}, expected names of tasks: {known}.")

    def _grid_faults(self) -> Iterator[Fault]:
        grids = {"grid": self.grid} | {f"cells.{name}.grid": row.grid for name, row in self.cells.items()}
        for place, grid in grids.items():
            for key, values in (grid or {}).items():
                if not values or len({value_text(value) for value in values}) < len(values):
                    yield Fault(f"{place}.{key}", f"{list(values)}, expected at least one value, each once.")

    @property
    def folder(self) -> Path:
        """Where everything goes: grid, cells, logs, scores, lists of names."""
        return self.dir or Path("runs/sweeps") / self.name

    @property
    def places(self) -> list[tuple[str, str]]:
        """(task, row) of each entry of the table that is to run; the task is `ONE_TASK` if the sweep names none."""
        tasks = list(self.tasks or [ONE_TASK])
        rows = {name: row for name, row in self.cells.items() if name in (self.rows or self.cells)}
        return [(t, name) for t in tasks for name, row in rows.items() if row.only is None or t in row.only]

    def choices(self, row: str) -> dict[str, tuple[Any, ...]]:
        """Returns the keys of a row's grid with their values; {} without a grid."""
        return {**(self.grid or {}), **(self.cells[row].grid or {})}

    def points(self, row: str) -> list[dict[str, Any]]:
        """Returns every combination of the values of a row's grid; without a grid there is one, which is empty."""
        choices = self.choices(row)
        return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]

    def to_yaml(self) -> str:
        """Returns all settings as YAML that `load_sweep` reads back to an equal sweep."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def value_text(value: Any) -> str:
    """Returns a value of a grid as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", str(value))


def load_sweep(path: str | Path, settings: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and checks it; the configs of its runs are checked by `samtune.sweep.plan.plan`.

    Args:
        path: looked up as a config is.
        settings: `KEY=VALUE`, of the sweep (`steps=50`), or of the config of all runs that do not set that key.

    Raises:
        ConfigError: no such file, or all problems in one message.
    """
    own = [text for text in settings if text.partition("=")[0].split(".")[0] in Sweep.model_fields]
    sweep = read_model(Sweep, path, own, _SweepProblems)
    shared = [text for text in settings if text not in own]
    return sweep.model_copy(update={"overrides": (*sweep.overrides, *shared)})


class _SweepProblems(Problems):
    """Knows the keys of a row or task, which is a section under a name that the user chose."""

    def unknown_key(self, keys: KeyPath) -> str:
        sections: dict[Any, tuple[type[BaseModel], str]] = {"cells": (SweepRow, "row"), "tasks": (SweepTask, "task")}
        if len(keys) != 3 or keys[0] not in sections:
            return super().unknown_key(keys)
        section, owner = sections[keys[0]]
        return Problems(section, "", {}).unknown_key(keys[2:]).replace("Keys of the file", f"Keys of a {owner}")
