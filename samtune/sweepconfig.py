"""The settings of a sweep, and the runs that they ask for.

A sweep file names a base config and the rows of a table, each with its changes to that config. Every run is
planned and its config checked before the first one starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from samtune.config import Config, load_config, read_model
from samtune.config_problems import KeyPath, Problems
from samtune.config_sections import PathText, Section
from samtune.errors import ConfigError
from samtune.paths import find_path

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a row; it becomes part of a folder's name


def _as_texts(value: Any) -> Any:
    """Turns `key: value` into the `key=value` of the command line, where a mapping replaces the whole block."""
    if isinstance(value, Mapping):
        return tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
    return () if value is None else value


Overrides = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_texts)]
Values = Annotated[tuple[float | int | bool | str, ...], Field(strict=False)]


class SweepRow(Section):
    """One entry of `cells`: a row of the table."""

    title: str = Field(min_length=1, description="what the table calls this row")
    overrides: Overrides = Field((), description="changes to the config, after those of all rows")
    grid: Values | None = Field(None, description="values for the grid's key, instead of those of all rows")


class Sweep(Section):
    """All settings of one sweep."""

    name: str = Field(pattern=NAME, description="name of the sweep")
    config: PathText = Field(description="the base config file")
    dir: PathText | None = Field(None, description="folder of everything; empty: runs/sweeps/NAME")
    overrides: Overrides = Field((), description="changes to the config for all rows")
    cells: dict[Annotated[str, Field(pattern=NAME)], SweepRow] = Field(description="rows of the table by short name")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = Field(
        (0,), description="one run of each row per seed"
    )
    steps: int = Field(ge=1, description="train.steps of the runs that the table shows")
    grid: dict[str, Values] | None = Field(None, description="one key of the config and the values to choose from")
    grid_share: float = Field(0.25, gt=0, le=1, description="part of the steps that a run of the grid takes")
    choose_on: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="part of DIR/train to choose on, DIR/val is reported; empty: the data's own val and test",
    )
    jobs: int = Field(1, ge=1, description="runs at once")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = []
        if not self.cells:
            problems.append(("cells", "{}, expected at least one row."))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            problems.append(("seeds", f"{list(self.seeds)}, expected at least one seed, each once."))
        if self.grid is not None and len(self.grid) != 1:
            problems.append(("grid", f"{len(self.grid)} keys, expected one key of the config, such as train.lr."))
        lists = [("grid", values) for values in (self.grid or {}).values()]
        rows = [(f"cells.{name}.grid", row.grid) for name, row in self.cells.items() if row.grid is not None]
        problems += [(key, "[], expected at least one value.") for key, values in lists + rows if not values]
        if self.grid is None:
            problems += [(key, "there is no grid to replace; add `grid:` to the sweep.") for key, _ in rows]
        if problems:
            raise PydanticCustomError("options", "parts do not fit", {"problems": problems})
        return self

    @property
    def folder(self) -> Path:
        """Where everything goes: grid, cells, logs, scores, lists of names."""
        return self.dir or Path("runs/sweeps") / self.name

    @property
    def grid_key(self) -> str | None:
        """The key that is chosen by the grid."""
        return next(iter(self.grid)) if self.grid else None

    def values(self, row: str) -> tuple[Any, ...]:
        """Returns the values that a row chooses from; () without a grid."""
        given = self.cells[row].grid
        return given if given is not None else next(iter((self.grid or {}).values()), ())

    def to_yaml(self) -> str:
        """Returns all settings as YAML that `load_sweep` reads back to an equal sweep."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its log file and messages.
        row: short name of its row.
        title: of its row.
        folder: its run folder.
        base: the base config file.
        overrides: its changes to that, complete.
        changes: those of its row alone.
        config: the checked result.
        in_grid: it serves the choice of a value, and no table shows it.
        value: of the grid's key; None without a grid.
        edge: the value is the lowest or the highest of the grid, so the best one may lie beyond.
    """

    name: str
    row: str
    title: str
    folder: Path
    base: Path
    overrides: tuple[str, ...]
    changes: tuple[str, ...]
    config: Config
    in_grid: bool
    value: Any
    edge: bool


def load_sweep(path: str | Path, settings: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and checks it; the configs of its runs are checked by `plan`.

    Args:
        path: a YAML file, looked up as a config is.
        settings: `KEY=VALUE` each: keys of the sweep (`steps=50`), or keys of the config (`data.dir=DIR`), which
            then hold for all rows, unless a row sets them itself.

    Raises:
        ConfigError: no such file, or all problems in one message.
    """
    own = [text for text in settings if text.partition("=")[0].split(".")[0] in Sweep.model_fields]
    sweep = read_model(Sweep, path, own, _SweepProblems)
    shared = [text for text in settings if text not in own]
    return sweep.model_copy(update={"overrides": (*sweep.overrides, *shared)})


class _SweepProblems(Problems):
    """Knows the keys of a row, which is a section under a name that the user chose."""

    def unknown_key(self, keys: KeyPath) -> str:
        if len(keys) == 3 and keys[0] == "cells":
            return Problems(SweepRow, "", {}).unknown_key(keys[2:]).replace("Keys of the file", "Keys of a row")
        return super().unknown_key(keys)


def plan(sweep: Sweep, chosen: Mapping[str, Any] | None = None) -> list[Cell]:
    """Lists the runs of a sweep, with checked configs, in the order of running.

    Args:
        sweep: the settings.
        chosen: None lists the grid. Else the grid's best value by row, for the runs that the table shows: the
            first seed of all rows comes first; a row that is not in it is left out.

    Raises:
        ConfigError: the problems of every row, at once.
    """
    cells = []
    problems: dict[str, list[str]] = {}  # message -> rows
    parts = _parts(sweep, in_grid=chosen is None)
    for row, seed, value in _wanted(sweep, chosen):
        try:
            cells.append(_cell(sweep, row, seed, value, parts, in_grid=chosen is None))
        except ConfigError as error:
            rows = problems.setdefault(str(error), [])
            rows += [row] if row not in rows else []
    if problems:
        lines = [f"cells.{', cells.'.join(rows)}: {text}" for text, rows in problems.items()]
        raise ConfigError("\n".join([f"sweep {sweep.name!r} can't run:", *lines]))
    return cells


def choice_lists(sweep: Sweep) -> dict[str, Path]:
    """Returns the files of names by use: `choice`, and its two parts for the grid, `grid_val` and `grid_test`."""
    return {name: sweep.folder.resolve() / f"{name}.txt" for name in ("choice", "grid_val", "grid_test")}


def data_folder(sweep: Sweep) -> Path:
    """Returns the data folder of the base config with the changes for all rows."""
    return find_path(load_config(sweep.config, sweep.overrides).data.dir).resolve()


def _wanted(sweep: Sweep, chosen: Mapping[str, Any] | None) -> Iterable[tuple[str, int, Any]]:
    if chosen is not None:
        return [(row, seed, chosen[row]) for seed in sweep.seeds for row in sweep.cells if row in chosen]
    # of a single value there is nothing to choose
    rows = [row for row in sweep.cells if len(sweep.values(row)) > 1]
    return [(row, sweep.seeds[0], value) for row in rows for value in sweep.values(row)]


def _cell(sweep: Sweep, row: str, seed: int, value: Any, parts: list[str], *, in_grid: bool) -> Cell:
    values = sweep.values(row)
    name = f"{row}_{value}" if in_grid else f"{row}_{seed}"
    steps = max(1, int(sweep.steps * sweep.grid_share)) if in_grid else sweep.steps
    overrides = [
        "track.mlflow=false",
        f"eval.overlays={0 if in_grid else 3}",
        *sweep.overrides,
        *parts,
        *sweep.cells[row].overrides,
        f"run.seed={seed}",
        f"train.steps={steps}",
        *([f"{sweep.grid_key}={json.dumps(value)}"] if values else []),
    ]
    config = load_config(sweep.config, overrides)
    key = score_key(config)
    if key is not None and config.score.file is None:
        file = sweep.folder.resolve() / "scores" / f"{key}.safetensors"
        overrides.append(f"score.file={json.dumps(str(file))}")
        config = config.model_copy(update={"score": config.score.model_copy(update={"file": file})})
    numbers = sorted(v for v in values if isinstance(v, int | float))
    return Cell(
        name=f"grid_{name}" if in_grid else name,
        row=row,
        title=sweep.cells[row].title,
        folder=sweep.folder / ("grid" if in_grid else "cells") / name,
        base=sweep.config,
        overrides=tuple(overrides),
        changes=sweep.cells[row].overrides,
        config=config,
        in_grid=in_grid,
        value=value,
        edge=len(numbers) > 1 and value in (numbers[0], numbers[-1]),
    )


def _parts(sweep: Sweep, *, in_grid: bool) -> list[str]:
    """Returns the overrides for the parts of the data: train, the choice part taken out of it, what is reported."""
    if sweep.choose_on is None:
        return []
    data, lists = data_folder(sweep), choice_lists(sweep)
    # The grid must not open what is reported: its test part is one image of the choice part, and is not used.
    val, test = (lists["grid_val"], lists["grid_test"]) if in_grid else (lists["choice"], data / "val")
    parts = {"data.dir": data / "train", "data.val": val, "data.test": test}
    return [f"{key}={json.dumps(str(path))}" for key, path in parts.items()]


def score_key(config: Config) -> str | None:
    """Names the scoring pass of a config: runs with one key need the same scores.

    Args:
        config: of a run.

    Returns:
        A name for the file, or None if the selector needs no scores. It covers model, training images, loss,
        granularity, and the seed that the loss draws with.
    """
    from samtune.selection import SELECTORS  # late: the selectors import torch

    needs = SELECTORS[config.select.name].needs(**config.select.options)
    if needs is None:
        return None
    covered = {
        "needs": asdict(needs),
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json", include={"dir", "split", "train", "prompt"}),
        "score": config.score.model_dump(mode="json", exclude={"file"}),
    }
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:12]
    return f"{config.score.loss or needs.loss}-{needs.per}-seed{config.run.seed}-{digest}"
