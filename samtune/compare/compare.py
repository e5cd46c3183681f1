"""Runs side by side: the table of a sweep, or of any run folders, made from the per-image tables. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from samtune.compare.against import Difference, definitions_against, differences, find_method, tests_grid
from samtune.compare.read import Method, Row, base_values, check_same_images, load_methods
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
from samtune.compare.tasks import TaskComparison, compare_tasks
from samtune.errors import ConfigError, DataError
from samtune.sweep.settings import ONE_TASK


@dataclass(frozen=True)
class Comparison:
    """Methods on one task, in the order of the sweep or of the given folders.

    `against` is the row that the others are tested with; numbers are in [0, 1], and shown times `factor`.
    """

    title: str
    methods: tuple[Method, ...]
    against: Method | None = None

    @property
    def rows(self) -> list[Row]:
        """The row of each method."""
        return [method.rows[ONE_TASK] for method in self.methods]

    @property
    def first(self) -> Row:
        """The first row that was run: one end of the differences."""
        return next(row for row in self.rows if row.runs)

    @property
    def best(self) -> Row:
        """The row that is best by the first metric: the other end."""
        return max((row for row in self.rows if row.runs), key=lambda row: row.spread(self.metrics[0])[0])

    @property
    def metrics(self) -> list[str]:
        """Names of the reported means."""
        return list(self.first.runs[0].metrics)

    @property
    def before(self) -> dict[str, dict[str, float]]:
        """Values of each untuned model by its name, where they are known; one name if all rows tune the same."""
        return base_values([run for row in self.rows for run in row.runs])

    @property
    def axis(self) -> str:
        """What the first metric is called on an axis."""
        return self.first.runs[0].words.axis

    @property
    def scores(self) -> list[float | None]:
        """The first metric of each row, as `number` writes it; None without a run."""
        return [self.factor * row.spread(self.metrics[0])[0] if row.runs else None for row in self.rows]

    @cached_property
    def differences(self) -> dict[str, list[Difference | None]]:
        """Of each metric the difference of every row to `against`, which has None; {} without it."""
        other, parts = self.against, ((ONE_TASK,),)
        return {} if other is None else {m: differences(self.methods, other, parts, m) for m in self.metrics}

    @property
    def effects(self) -> list[Difference | None]:
        """The differences of the first metric, as `number` writes it."""
        return self.differences[self.metrics[0]] if self.against else []

    @property
    def notes(self) -> dict[str, str]:
        """What the names in the tables mean."""
        return definitions(self.methods) | (definitions_against(self.against) if self.against else {})

    @property
    def results(self) -> list[Grid]:
        """The tables of results: means with intervals, and the tests, if there are any."""
        heads = [text for metric in self.metrics for text in (metric, "95 % interval")]
        others = [self.against.title] if self.against else ["first row", "best row"]
        ends = [f"{self.metrics[0]} - {name}" for name in others]
        before = [self._before_row(name, values, len(ends)) for name, values in self.before.items()]
        rows = [[row.title, *self._results(place)] for place, row in enumerate(self.rows)]
        tests = [tests_grid(self.methods, self.effects, self.against, self.number)] if self.against else []
        return [((self.title, *heads, *ends), before + rows), *tests]

    def to_markdown(self) -> str:
        """Returns tables: results, tests if there are any, trainable parameters by line, and cost."""
        costs = (counts_grid(self.methods), cost_grid(self.methods))
        return to_text([*self.results, *apart_grids(self.methods), *costs], self.notes)

    def to_json(self) -> dict[str, Any]:
        """Returns the same numbers, unrounded and in [0, 1]; what is not known is null."""
        shown: dict[str, Any] = {
            "title": self.title,
            "definition": self.notes,
            "first": self.first.title,
            "best": self.best.title,
        }
        values = self.before
        shown |= {"before": next(iter(values.values())) if len(values) == 1 else None, "before_by_model": values}
        rows = [self._row_json(place) for place in range(len(self.methods))]
        return shown | {"against": self.against.title if self.against else None, "rows": rows}

    @property
    def factor(self) -> float:
        """What a value in [0, 1] is multiplied by to be shown."""
        return 100.0 if self.first.runs[0].words.percent else 1.0

    def number(self, value: float, sign: str = "") -> str:
        """Writes a value in [0, 1], or a difference of two."""
        return f"{self.factor * value:{sign}.{2 if self.factor > 1 else 3}f}"

    def _before_row(self, name: str, values: dict[str, float], ends: int) -> list[str]:
        title = "Before (untuned)" + f": {name}" * (len(self.before) > 1)
        return [title, *(text for metric in self.metrics for text in (self.number(values[metric]), "")), *[""] * ends]

    def _results(self, place: int) -> list[str]:
        row, cells = self.rows[place], list[str]()
        for metric in self.metrics:
            cells += (
                [self._spread(row, metric), " to ".join(map(self.number, row.ci95(metric)))] if row.runs else ["", ""]
            )
        if self.against:
            difference = self.effects[place]
            return [*cells, "" if difference is None else difference.to_text(self.number)]
        return cells + [self._gain(row, other) for other in (self.first, self.best)]

    def _gain(self, row: Row, other: Row) -> str:
        if other is row or not row.runs:
            return ""
        gain, low, high = (self.number(value, "+") for value in row.minus(other, self.metrics[0]))
        return f"{gain} ({low} to {high})"

    def _spread(self, row: Row, metric: str) -> str:
        mean, deviation = row.spread(metric)
        text = self.number(mean) + ("" if deviation is None else f" ± {self.number(deviation)}")
        return text if len(row.runs) == row.wanted else f"{text} ({len(row.runs)} of {row.wanted} seeds)"

    def _row_json(self, place: int) -> dict[str, Any]:
        method, row = self.methods[place], self.rows[place]
        folders = [str(run.folder) for run in row.runs]
        result: dict[str, Any] = {"title": row.title, "runs": folders, "seeds": row.seeds, "seeds_wanted": row.wanted}
        if not row.runs:
            return result
        for metric in self.metrics:
            mean, deviation = row.spread(metric)
            gains: dict[str, Any] = {f"minus_{n}": row.minus(getattr(self, n), metric) for n in ("first", "best")}
            if self.against:
                difference = self.differences[metric][place]
                gains["against"] = difference and difference.to_json()
            result[metric] = {"mean": mean, "std": deviation, "ci95": row.ci95(metric), **gains}
        shared = {key: row.runs[0].facts.get(key) for key in ("lr", "values", "edge", "steps")}
        result |= {"trainable": row.runs[0].trainable or None, "left_out": apart_json(method)}
        return result | shared | cost_numbers(method)


Compared = Comparison | TaskComparison


def compare(folders: Sequence[Path], *, paper: str | None = None, against: str | None = None) -> Compared:
    """Puts runs side by side.

    Args:
        folders: sweep folders, each with its rows, and run folders, each a row of its own.
        paper: benchmark of `samtune.config.papers` whose published rows are listed too; for sweeps with tasks.
        against: the row that all others are tested against: its short name, title or run folder.

    Raises:
        ConfigError: an unknown `paper`, or one for runs without tasks; no row, or several, of the name `against`.
        DataError: a folder that is neither, nothing finished, or runs of one task on different test images.
    """
    loaded = [load_methods(Path(folder)) for folder in folders]
    methods = tuple(method for _, found in loaded for method in found)
    tasks = list({task.name: task for found, _ in loaded for task in found}.values())
    if not any(method.runs for method in methods):
        raise DataError(f"{', '.join(map(str, folders))}: no cell is finished yet. Run `samtune sweep` first.")
    for task in tasks:
        runs = [run for method in methods if task.name in method.rows for run in method.rows[task.name].runs]
        if runs:
            check_same_images(runs)
    other = None if against is None else find_method(methods, against)
    title = Path(folders[0]).resolve().name if len(folders) == 1 else "runs"
    single = [task for task in tasks if task.name == ONE_TASK]
    if single and len(tasks) > 1:
        raise DataError("a sweep with tasks and runs of one task have no table in common. Compare them apart.")
    if not single:
        return compare_tasks(title, tasks, methods, paper=paper, against=other)
    if paper is not None:
        raise ConfigError(f"--paper {paper}: published rows go below a sweep with `tasks:`, one column per data set.")
    return Comparison(title, methods, other)
