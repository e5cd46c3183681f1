"""The table of a sweep over several tasks: methods down, tasks across, with means of groups and of all."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from samtune.compare.against import Difference, Parts, definitions_against, differences, tests_grid
from samtune.compare.read import Column, Method
from samtune.compare.tables import (
    Grid,
    apart_grids,
    apart_json,
    cost_grid,
    cost_numbers,
    counts_grid,
    definitions,
    to_text,
)
from samtune.config.papers import PublishedRow, published
from samtune.errors import ConfigError, DataError

BACKBONES = {  # beginning of a model's name -> backbone of the papers' tables
    "vit_base_patch16_224.mae": "vit_base_mae",
    "vit_base_patch16_224.mocov3": "vit_base_moco_v3",
    "vit_base_patch16_224.augreg_in21k": "vit_base",
    "vit_base_patch16_224.orig_in21k": "vit_base",
    "swin_base": "swin_base",
    "convnext_base": "convnext_base",
}

Columns = dict[str, Parts]  # heading -> its tasks
MEAN = "mean of tasks"

NOTES = {
    MEAN: "Mean over all tasks, whatever their groups: what GPS and GRFT print for VTAB.",
    "mean of groups": "Mean of the means of the groups: what SPT prints for VTAB. Never put it beside the other.",
    "trainable": "Percent of all parameters of the model, mean over the tasks.",
}


@dataclass(frozen=True)
class TaskComparison:
    """Methods on several tasks, beside the published rows of papers for one backbone, where they are asked for.

    `against` is the row that the others are tested with; numbers are in percent.
    """

    title: str
    tasks: tuple[Column, ...]
    methods: tuple[Method, ...]
    published: tuple[PublishedRow, ...]
    backbone: str
    against: Method | None = None
    factor = 1.0

    @property
    def columns(self) -> Columns:
        """What the table shows: tasks by group, and means."""
        return _columns(self.tasks)

    @property
    def axis(self) -> str:
        """What the mean of all tasks is called on an axis."""
        return f"{MEAN}, %"

    @property
    def scores(self) -> list[float | None]:
        """The mean of all tasks of each row, in percent; None where a task is missing."""
        return [_spread(method, self.columns, MEAN)[0] for method in self.methods]

    @cached_property
    def differences(self) -> dict[str, list[Difference | None]]:
        """Of each column the difference of every row to `against`, which has None; {} without it."""
        other = self.against
        if other is None:
            return {}
        metric = next(iter(other.runs[0].metrics))
        return {n: differences(self.methods, other, parts, metric, scale=100.0) for n, parts in self.columns.items()}

    @property
    def effects(self) -> list[Difference | None]:
        """The differences of the mean of all tasks."""
        return self.differences[MEAN] if self.against else []

    @property
    def notes(self) -> dict[str, str]:
        """What the names in the tables mean."""
        shown = {name: text for name, text in NOTES.items() if name in self.columns or name == "trainable"}
        notes = self._definitions() | shown | (definitions_against(self.against) if self.against else {})
        if self.published:
            notes["[paper]"] = (
                f"Numbers that others published, for {self.backbone}, with their own data, code and hardware; their "
                "means are computed here, in the same way as ours. A * marks a re-run by the authors of that paper."
            )
        return notes

    @property
    def results(self) -> list[Grid]:
        """The tables of results: means of the tasks, and differences and tests of `against`, if it is given."""
        table = ((self.title, *self.columns, "trainable %"), self._rows())
        if self.against is None:
            return [table]
        rows = []
        for place, method in enumerate(self.methods):
            found = [self.differences[name][place] for name in self.columns]
            rows.append([method.title, *("" if d is None else d.to_text(self.number) for d in found)])
        gains = ((f"difference to {self.against.title}", *self.columns), rows)
        return [table, gains, tests_grid(self.methods, self.effects, self.against, self.number)]

    def number(self, value: float, sign: str = "") -> str:
        """Writes a value, or a difference, in percent."""
        return f"{value:{sign}.2f}"

    def to_markdown(self) -> str:
        """Returns tables: results, tests if there are any, trainable parameters of the first task, and cost."""
        costs = (counts_grid(self.methods), cost_grid(self.methods))
        return to_text([*self.results, *apart_grids(self.methods), *costs], self.notes)

    def to_json(self) -> dict[str, Any]:
        """Returns the same numbers, unrounded; accuracies in percent; what is not known is null."""
        papers = [
            {"title": _paper_title(row), "backbone": self.backbone, "percent": row.percent}
            | {"values": _aggregate(self._scores_of_paper(row), self.columns)}
            for row in self.published
        ]
        tasks, rows = [asdict(task) for task in self.tasks], list(map(self._row_json, range(len(self.methods))))
        definition = self._definitions() | NOTES | (definitions_against(self.against) if self.against else {})
        shown = {"title": self.title, "definition": definition, "tasks": tasks}
        return shown | {"against": self.against.title if self.against else None, "rows": rows, "published": papers}

    def _definitions(self) -> dict[str, str]:
        return {
            name: text
            for name, text in definitions(self.methods).items()
            if name in ("mean", "training", "not complete")
        }

    def _rows(self) -> list[list[str]]:
        """Returns ours, each followed by what papers say of the same selector; then the rest of theirs."""
        rows, waiting = [], list(self.published)
        for method in self.methods:
            texts = [_text(*_spread(method, self.columns, name)) for name in self.columns]
            rows.append([method.title, *texts, _two_digits(_percent(method))])
            same = [row for row in waiting if row.key == _key(method)]
            waiting = [row for row in waiting if row not in same]
            rows += [self._paper_row(row) for row in same]
        return rows + [self._paper_row(row) for row in waiting]

    def _paper_row(self, row: PublishedRow) -> list[str]:
        values = _aggregate(self._scores_of_paper(row), self.columns)
        return [_paper_title(row), *(_two_digits(values[name]) for name in self.columns), _two_digits(row.percent)]

    def _scores_of_paper(self, row: PublishedRow) -> dict[str, float]:
        names = {task.name: _dataset(task, self.methods) for task in self.tasks}
        return {task: row.values[name] for task, name in names.items() if name in row.values}

    def _row_json(self, place: int) -> dict[str, Any]:
        method, keys = self.methods[place], ("mean", "std", "seeds", "seeds_wanted")
        values = {n: dict[str, Any](zip(keys, _spread(method, self.columns, n), strict=True)) for n in self.columns}
        for name, found in self.differences.items():
            difference = found[place]
            values[name]["against"] = difference and difference.to_json()
        shown: dict[str, Any] = {"title": method.title, "values": values, "percent": _percent(method)}
        shown |= {"runs": [str(run.folder) for run in method.runs], "left_out": apart_json(method)}
        return shown | cost_numbers(method)


def compare_tasks(
    title: str, tasks: Sequence[Column], methods: tuple[Method, ...], *, paper: str | None, against: Method | None
) -> TaskComparison:
    """Puts methods side by side on several tasks.

    Raises:
        ConfigError: an unknown `paper`.
        DataError: no task of the benchmark.
    """
    if paper is None:
        return TaskComparison(title, tuple(tasks), methods, (), "", against)
    model = next(run for method in methods for run in method.runs).setting("model.name") or ""
    backbone = next((name for start, name in BACKBONES.items() if model.startswith(start)), None)
    if backbone is None:
        raise ConfigError(f"--paper {paper}: no table is of {model or 'this model'}. Known: {', '.join(BACKBONES)}.")
    comparison = TaskComparison(title, tuple(tasks), methods, tuple(published(paper, backbone)), backbone)
    if not any(comparison._scores_of_paper(row) for row in comparison.published):
        names = sorted({name for row in comparison.published for name in row.values})
        raise DataError(f"--paper {paper}: no task has a data.name of its tables, such as {names[0]}, {names[-1]}.")
    return comparison


def _columns(tasks: Sequence[Column]) -> Columns:
    columns: Columns = {}
    groups: list[tuple[str, ...]] = []
    for group in dict.fromkeys(task.group for task in tasks):
        members = [task for task in tasks if task.group == group]
        columns |= {task.title: ((task.name,),) for task in members}
        if group is not None:
            groups.append(tuple(task.name for task in members))
            columns[f"{group} (mean)"] = (groups[-1],)
    columns[MEAN] = (tuple(task.name for task in tasks),)
    if len(groups) > 1:
        columns["mean of groups"] = tuple(groups)
    return columns


def _aggregate(scores: Mapping[str, float], columns: Columns) -> dict[str, float | None]:
    """Returns the value of every column from one score per task; None where a task is missing."""
    values: dict[str, float | None] = {}
    for name, parts in columns.items():
        known = all(task in scores for part in parts for task in part)
        values[name] = statistics.fmean(statistics.fmean(scores[t] for t in part) for part in parts) if known else None
    return values


def _spread(method: Method, columns: Columns, name: str) -> tuple[float | None, float | None, int, int]:
    """Returns (mean, sample standard deviation, seeds, wanted seeds) of one column over the seeds that have it."""
    by_seed: dict[Any, dict[str, float]] = {}
    for task, run in ((task, run) for task, row in method.rows.items() for run in row.runs):
        by_seed.setdefault(run.facts.get("seed"), {})[task] = 100 * run.report.choice
    found = [value for scores in by_seed.values() if (value := _aggregate(scores, columns)[name]) is not None]
    wanted = max((row.wanted for row in method.rows.values()), default=0)
    if not found:
        return None, None, 0, wanted
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found), wanted


def _text(mean: float | None, deviation: float | None, seeds: int, wanted: int) -> str:
    if mean is None:
        return ""
    text = f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
    return text if seeds == wanted else f"{text} ({seeds} of {wanted} seeds)"


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(method: Method) -> float | None:
    found = [row.runs[0].trainable.get("percent") for row in method.rows.values() if row.runs]
    values = [value for value in found if value is not None]
    return statistics.fmean(values) if values else None


def _dataset(task: Column, methods: Sequence[Method]) -> str | None:
    runs = [run for method in methods if task.name in method.rows for run in method.rows[task.name].runs]
    return runs[0].setting("data.name") if runs else None


def _key(method: Method) -> str | None:
    """Returns what `PublishedRow.key` calls the method."""
    if not method.runs:
        return None
    run = method.runs[0]
    name, structure = run.setting("select.name"), run.setting("select.structure")
    return f"{name}_{structure}" if name == "spt" else name


def _paper_title(row: PublishedRow) -> str:
    return f"[{row.paper}, {row.table}] {row.title}"
