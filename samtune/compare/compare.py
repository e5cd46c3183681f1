"""Runs side by side: the table of a sweep, or of any run folders, made from the per-image tables. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtune.compare.read import Method, Row, Run, check_same_images, load_methods
from samtune.compare.tables import cost_numbers, definitions, tables
from samtune.compare.tasks import TaskComparison, compare_tasks
from samtune.errors import ConfigError, DataError
from samtune.sweep.settings import ONE_TASK


@dataclass(frozen=True)
class Comparison:
    """Methods on one task, in the order of the sweep or of the given folders."""

    title: str
    methods: tuple[Method, ...]

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
    def before(self) -> dict[str, float] | None:
        """Values of the untuned model, from a row that does not change the model; None if not known."""
        runs = [run for row in self.rows for run in row.runs if not _changes_model(run)]
        return next((run.before for run in runs if run.before), None)

    def to_markdown(self) -> str:
        """Returns three tables: results, trainable parameters by line, and cost."""
        rows = [[row.title, *self._results(row)] for row in self.rows]
        if self.before is not None:
            values = [text for metric in self.metrics for text in (self._text(self.before[metric]), "")]
            rows.insert(0, ["Before (untuned)", *values, "", ""])
        heads = [text for metric in self.metrics for text in (metric, "95 % interval")]
        ends = [f"{self.metrics[0]} - {name} row" for name in ("first", "best")]
        return tables((self.title, *heads, *ends), rows, self.methods, definitions(self.methods))

    def to_json(self) -> dict[str, Any]:
        """Returns the same numbers, unrounded and in [0, 1]; what is not known is null."""
        shown = {"title": self.title, "definition": definitions(self.methods), "first": self.first.title}
        rows = [self._row_json(method) for method in self.methods]
        return shown | {"best": self.best.title, "before": self.before, "rows": rows}

    def _text(self, value: float, sign: str = "") -> str:
        percent = self.first.runs[0].words.percent
        return f"{100 * value:{sign}.2f}" if percent else f"{value:{sign}.3f}"

    def _results(self, row: Row) -> list[str]:
        if not row.runs:
            return [""] * (2 * len(self.metrics) + 2)
        cells = []
        for metric in self.metrics:
            cells += [self._spread(row, metric), " to ".join(map(self._text, row.ci95(metric)))]
        for other in (self.first, self.best):
            gain, low, high = (self._text(value, "+") for value in row.minus(other, self.metrics[0]))
            cells.append("" if other is row else f"{gain} ({low} to {high})")
        return cells

    def _spread(self, row: Row, metric: str) -> str:
        mean, deviation = row.spread(metric)
        text = self._text(mean) + ("" if deviation is None else f" ± {self._text(deviation)}")
        return text if len(row.runs) == row.wanted else f"{text} ({len(row.runs)} of {row.wanted} seeds)"

    def _row_json(self, method: Method) -> dict[str, Any]:
        row = method.rows[ONE_TASK]
        folders, seeds = [str(run.folder) for run in row.runs], [run.facts.get("seed") for run in row.runs]
        result: dict[str, Any] = {"title": row.title, "runs": folders, "seeds": seeds, "seeds_wanted": row.wanted}
        if not row.runs:
            return result
        for metric in self.metrics:
            mean, deviation = row.spread(metric)
            gains = {f"minus_{name}": row.minus(getattr(self, name), metric) for name in ("first", "best")}
            result[metric] = {"mean": mean, "std": deviation, "ci95": row.ci95(metric), **gains}
        shared = {key: row.runs[0].facts.get(key) for key in ("lr", "values", "edge", "steps")}
        return result | {"trainable": row.runs[0].trainable or None} | shared | cost_numbers(method)


def compare(folders: Sequence[Path], *, paper: str | None = None) -> Comparison | TaskComparison:
    """Puts runs side by side.

    Args:
        folders: sweep folders, each with its rows, and run folders, each a row of its own.
        paper: benchmark of `samtune.config.papers` whose published rows are listed too; for sweeps with tasks.

    Raises:
        ConfigError: an unknown `paper`, or one for runs without tasks.
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
    title = Path(folders[0]).resolve().name if len(folders) == 1 else "runs"
    single = [task for task in tasks if task.name == ONE_TASK]
    if single and len(tasks) > 1:
        raise DataError("a sweep with tasks and runs of one task have no table in common. Compare them apart.")
    if not single:
        return compare_tasks(title, tasks, methods, paper=paper)
    if paper is not None:
        raise ConfigError(f"--paper {paper}: published rows go below a sweep with `tasks:`, one column per data set.")
    return Comparison(title, methods)


def _changes_model(run: Run) -> bool:
    return any(text.startswith(("model.", "model=")) for text in run.facts.get("overrides", ()))
