"""Runs side by side: the table of a sweep, or of any run folders. Reads only.

A row is one method with its seeds. Means and differences come from the per-image tables, so they can be made again
from the files.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samtune.errors import DataError
from samtune.metrics import bootstrap_ci, paired_bootstrap
from samtune.metrics.table import Report
from samtune.yamltext import parse_yaml

METRICS = {"mDice": "dice", "mIoU": "iou"}  # reported mean -> column of `per_image.csv`
LINES = ("selected", "bias", "norm", "decoder", "head", "added", "total")  # of `trainable` in `metrics.json`
COSTS = ("learning rate", "training", "its memory", "saved")
SAVED = "delta.safetensors"

DEFINITION = {
    "mean": "Mean over the images of the foreground metric, then mean ± sample standard deviation over the seeds.",
    "ci95": "95 % percentile bootstrap interval over the images (1000 resamples, seed 0) of each image's mean over "
    "the seeds; it speaks about the choice of images, not about the luck of a run.",
    "difference": "Mean over the images of this row minus that row, each image averaged over its row's seeds first, "
    "with the 95 % interval of the paired bootstrap. An interval without 0 speaks for a real difference.",
    "training": "Time with validations, without imports, scoring and evaluation, mean over the seeds; its memory is "
    "the peak of a seed minus what was in use before.",
}


@dataclass(frozen=True)
class Run:
    """What the files of one run say.

    Attributes:
        folder: the run folder.
        report: its per-image table.
        facts: of `cell.json`, where a sweep made the run; else learning rate and seed of `config.yaml`.
        trainable: counts of `metrics.json`; {} for an evaluation.
        before: mDice and mIoU of the untuned model, or None.
        saved_bytes: size of the delta, or None.
        images: names and hashes of the test images, or None.
    """

    folder: Path
    report: Report
    facts: dict[str, Any]
    trainable: dict[str, float]
    before: dict[str, float] | None
    saved_bytes: int | None
    images: str | None


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        title: what the table calls it.
        runs: one per seed; none if not run yet.
        wanted: number of seeds that it should have.
    """

    title: str
    runs: tuple[Run, ...]
    wanted: int

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Returns mean and sample standard deviation over the seeds; None for a single seed."""
        means = [getattr(run.report, metric) for run in self.runs]
        return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None

    def per_image(self, metric: str) -> dict[str, float]:
        """Returns image name -> mean over the seeds, NaN where no seed defines it."""
        column = METRICS[metric]
        tables = [{row.name: getattr(row, column) for row in run.report.rows} for run in self.runs]
        return {name: _mean([table[name] for table in tables]) for name in tables[0]}

    def ci95(self, metric: str) -> tuple[float, float]:
        """Returns the interval of `DEFINITION["ci95"]`."""
        return bootstrap_ci(list(self.per_image(metric).values()))

    def minus(self, other: Row, metric: str) -> tuple[float, float, float]:
        """Returns (difference, low, high) of `DEFINITION["difference"]`."""
        mine, theirs = self.per_image(metric), other.per_image(metric)
        return paired_bootstrap(list(theirs.values()), [mine[name] for name in theirs])


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        title: of the table.
        rows: in the order of the sweep, or of the given folders.
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """The first row that was run: one end of the differences."""
        return next(row for row in self.rows if row.runs)

    @property
    def best(self) -> Row:
        """The row of the highest mDice: the other end."""
        return max((row for row in self.rows if row.runs), key=lambda row: row.spread("mDice")[0])

    @property
    def before(self) -> dict[str, float] | None:
        """mDice and mIoU of the untuned model, from a row that does not change the model; None if not known."""
        runs = [run for row in self.rows for run in row.runs if not _changes_model(run)]
        return next((run.before for run in runs if run.before), None)

    def to_markdown(self) -> str:
        """Returns three tables: results, trainable parameters by line, and cost."""
        rows = [[row.title, *self._results(row)] for row in self.rows]
        if self.before is not None:
            dice, iou = (f"{self.before[metric]:.3f}" for metric in METRICS)
            rows.insert(0, ["Before (untuned)", dice, "", iou, "", "", ""])
        heads = ("mDice", "95 % interval", "mIoU", "95 % interval", "mDice - first row", "mDice - best row")
        tables = [
            _table((self.title, *heads), rows),
            _table(("trainable parameters", *LINES), [[row.title, *_counts(row)] for row in self.rows]),
            _table(("cost", *COSTS), [[row.title, *_cost(row)] for row in self.rows]),
        ]
        notes = [f"- {name}: {text}" for name, text in DEFINITION.items()]
        return "\n\n".join([*tables, "\n".join(notes)])

    def to_json(self) -> dict[str, Any]:
        """Returns the same numbers, unrounded; what is not known is null."""
        return {
            "title": self.title,
            "definition": DEFINITION,
            "first": self.first.title,
            "best": self.best.title,
            "before": self.before,
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _results(self, row: Row) -> list[str]:
        if not row.runs:
            return [""] * 6
        cells = []
        for metric in METRICS:
            cells += [_spread_text(row, metric), "{:.3f} to {:.3f}".format(*row.ci95(metric))]
        for other in (self.first, self.best):
            difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row.minus(other, "mDice"))
            cells.append("" if other is row else difference)
        return cells

    def _row_json(self, row: Row) -> dict[str, Any]:
        result: dict[str, Any] = {
            "title": row.title,
            "runs": [str(run.folder) for run in row.runs],
            "seeds": [run.facts.get("seed") for run in row.runs],
            "seeds_wanted": row.wanted,
        }
        if not row.runs:
            return result
        for metric in METRICS:
            mean, deviation = row.spread(metric)
            result[metric] = {
                "mean": mean,
                "std": deviation,
                "ci95": row.ci95(metric),
                "minus_first": row.minus(self.first, metric),
                "minus_best": row.minus(self.best, metric),
            }
        return result | {"trainable": row.runs[0].trainable or None} | _cost_numbers(row)


def compare(folders: Sequence[Path]) -> Comparison:
    """Puts runs side by side.

    Args:
        folders: sweep folders, each with its rows, and run folders, each a row of its own.

    Raises:
        DataError: a folder that is neither, nothing finished, or runs on different test images.
    """
    rows = [row for folder in folders for row in _rows(Path(folder))]
    if not any(row.runs for row in rows):
        raise DataError(f"{', '.join(map(str, folders))}: no cell is finished yet. Run `samtune sweep` first.")
    _check_same_images([run for row in rows for run in row.runs])
    return Comparison(Path(folders[0]).resolve().name if len(folders) == 1 else "runs", tuple(rows))


def _rows(folder: Path) -> list[Row]:
    try:
        return _sweep_rows(folder) if (folder / "sweep.yaml").is_file() else [Row(str(folder), (_run(folder),), 1)]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, yaml.YAMLError) as err:
        raise DataError(f"{folder}: a file of the run or sweep is damaged ({err!r}). Run it again.") from err


def _sweep_rows(folder: Path) -> list[Row]:
    content = parse_yaml((folder / "sweep.yaml").read_text(encoding="utf-8")).value
    rows = []
    for name, row in content["cells"].items():
        cells = [folder / "cells" / f"{name}_{seed}" for seed in content["seeds"]]
        runs = tuple(_run(cell) for cell in cells if (cell / "cell.json").is_file())
        rows.append(Row(row["title"], runs, len(cells)))
    return rows


def _run(folder: Path) -> Run:
    report = Report.load(folder)  # says what is wrong with a folder that is no run
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    names = folder / "splits" / "test.txt"
    return Run(
        folder=folder,
        report=report,
        facts=_facts(folder),
        trainable=metrics.get("trainable") or {},
        before=metrics.get("before"),
        saved_bytes=(folder / SAVED).stat().st_size if (folder / SAVED).is_file() else None,
        images=names.read_text(encoding="utf-8") if names.is_file() else None,
    )


def _facts(folder: Path) -> dict[str, Any]:
    if (folder / "cell.json").is_file():
        return dict(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    if not (folder / "config.yaml").is_file():
        return {}
    config = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8")).value
    return {"lr": config["train"]["lr"], "seed": config["run"]["seed"]}


def _check_same_images(runs: list[Run]) -> None:
    first = runs[0]
    names = {row.name for row in first.report.rows}
    for run in runs[1:]:
        alone = sorted(names ^ {row.name for row in run.report.rows})
        files_differ = None not in (run.images, first.images) and run.images != first.images
        if alone or files_differ:
            which = f"{alone[0]!r} is in one of them only" if alone else "the files differ, though their names do not"
            raise DataError(
                f"{first.folder} and {run.folder} were measured on different test images: {which}. "
                "Compare runs of one test part; a split by ratio changes with run.seed."
            )


def _changes_model(run: Run) -> bool:
    return any(text.startswith(("model.", "model=")) for text in run.facts.get("overrides", ()))


def _counts(row: Row) -> list[str]:
    counts = row.runs[0].trainable if row.runs else {}
    return [f"{counts[line]:,}" if line in counts else "" for line in LINES]


def _cost_numbers(row: Row) -> dict[str, Any]:
    """Returns mean time, largest memory, and what all seeds share."""
    seconds, memory = ([run.facts[k] for run in row.runs if k in run.facts] for k in ("seconds", "memory_mib"))
    shared = {key: row.runs[0].facts.get(key) for key in ("lr", "value", "edge", "steps")}
    return shared | {
        "seconds": statistics.fmean(seconds) if seconds else None,
        "memory_mib": max(memory, default=None),
        "saved_bytes": row.runs[0].saved_bytes,
    }


def _cost(row: Row) -> list[str]:
    cost = _cost_numbers(row) if row.runs else dict.fromkeys(("lr", "seconds", "memory_mib", "saved_bytes"))
    show: dict[str, Callable[[Any], str]] = {
        "lr": lambda v: f"{v:g}" + (" (edge of the grid)" if cost["edge"] else ""),
        "seconds": lambda v: f"{v / 60:.1f} min",
        "memory_mib": lambda v: f"{v:,} MiB",
        "saved_bytes": lambda v: f"{v:,} B",
    }
    return ["" if cost[name] is None else text(cost[name]) for name, text in show.items()]


def _spread_text(row: Row, metric: str) -> str:
    mean, deviation = row.spread(metric)
    text = f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
    return text if len(row.runs) == row.wanted else f"{text} ({len(row.runs)} of {row.wanted} seeds)"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else math.nan
