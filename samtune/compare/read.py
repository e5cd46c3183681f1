"""What the files of runs and sweeps say: methods, each with its runs on each task. Reads only."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from samtune.base.tracking import flatten
from samtune.base.tracking.about import HISTORY
from samtune.base.tracking.sync import read_history
from samtune.config.yaml_text import parse_yaml
from samtune.errors import DataError
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap
from samtune.metrics.report import AnyReport
from samtune.sweep.settings import ONE_TASK
from samtune.sweep.trial import costs
from samtune.tasks.table import TASKS
from samtune.tasks.task import Task, Words

SAVED = "delta.safetensors"


@dataclass(frozen=True)
class Run:
    """What the files of one run say.

    Attributes:
        facts: of `cell.json`, where a sweep made the run; else what `config.yaml` and `history.jsonl` say of the same.
        trainable: counts of `metrics.json`; {} for an evaluation.
        before: values of the untuned model.
        images: names and hashes of the test images.
    """

    folder: Path
    task: str
    words: Words
    report: AnyReport
    facts: dict[str, Any]
    trainable: dict[str, float]
    before: dict[str, float] | None
    saved_bytes: int | None
    images: str | None

    @property
    def metrics(self) -> dict[str, Callable[[Any], float]]:
        """Reported means that are defined here, with their per-image value."""
        return {name: value for name, value in self.words.columns.items() if name in self.report.values}

    @property
    def seed(self) -> int | None:
        """The seed; None if it is not known, as of an evaluation."""
        return self.facts.get("seed")

    @property
    def base(self) -> dict[str, str]:
        """The settings of the model that was tuned; {} if they are not known."""
        return {key: text for key, text in self.facts.get("settings", {}).items() if key.startswith("model.")}

    def setting(self, key: str) -> str | None:
        """Returns a setting of the config as text; None if it is empty or not known."""
        text = self.facts.get("settings", {}).get(key)
        return None if text == "None" else text


@dataclass(frozen=True)
class Row:
    """One method on one task: a run per seed, none if not run yet, and the number of seeds that it should have."""

    title: str
    runs: tuple[Run, ...]
    wanted: int

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each run."""
        return [run.seed for run in self.runs]

    def only(self, seeds: Collection[int | None]) -> Row:
        """Returns the row with the runs of these seeds."""
        return replace(self, runs=tuple(run for run in self.runs if run.seed in seeds))

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Returns mean and sample standard deviation over the seeds; None for a single seed."""
        means = [run.report.values[metric] for run in self.runs]
        return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None

    def per_image(self, metric: str) -> dict[str, float]:
        """Returns name of the image or object -> mean over the seeds, NaN where no seed defines it."""
        value = self.runs[0].metrics[metric]
        tables = [{row.name: value(row) for row in run.report.rows} for run in self.runs]
        return {name: _mean([table[name] for table in tables]) for name in tables[0]}

    @property
    def images(self) -> list[str]:
        """The image of each entry of `per_image`."""
        return self.runs[0].report.images

    def ci95(self, metric: str) -> tuple[float, float]:
        """Returns the 95 % interval over the images of each image's mean over the seeds."""
        return bootstrap_ci(list(self.per_image(metric).values()), images=self.images)

    def minus(self, other: Row, metric: str) -> tuple[float, float, float]:
        """Returns (difference, low, high), paired by image."""
        mine, theirs = self.per_image(metric), other.per_image(metric)
        return paired_bootstrap(list(theirs.values()), [mine[name] for name in theirs], images=other.images)


@dataclass(frozen=True)
class Column:
    """One column of the table: its short name, title, and group if it has one."""

    name: str
    title: str
    group: str | None


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: its short name.
        rows: its runs by the name of the task; one that it leaves out is missing.
        sweep: the folder of the sweep that it is a row of; None for a run.
    """

    name: str
    title: str
    rows: dict[str, Row] = field(default_factory=dict)
    sweep: Path | None = None

    @property
    def runs(self) -> list[Run]:
        """The runs of all tasks and seeds."""
        return [run for row in self.rows.values() for run in row.runs]


def load_methods(folder: Path) -> tuple[list[Column], list[Method]]:
    """Reads a sweep, or a run as a method on one task.

    Raises:
        DataError: a folder that is neither, or whose files are damaged.
    """
    one = [Column(ONE_TASK, folder.name, None)]
    try:
        if (folder / "sweep.yaml").is_file():
            return _load_sweep(folder, one)
        return one, [Method(folder.name, str(folder), {ONE_TASK: Row(str(folder), (_load_run(folder),), 1)})]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, yaml.YAMLError) as err:
        raise DataError(f"{folder}: a file of the run or sweep is damaged ({err!r}). Run it again.") from err


def check_same_images(runs: Sequence[Run]) -> None:
    """Refuses runs of different images or kinds by a `DataError` that names two of them."""
    first = runs[0]
    names = {row.name for row in first.report.rows}
    for run in runs[1:]:
        if run.task != first.task:
            raise DataError(f"{first.folder} and {run.folder} are of different kinds: {first.task} and {run.task}.")
        alone = sorted(names ^ {row.name for row in run.report.rows})
        files_differ = None not in (run.images, first.images) and run.images != first.images
        if alone or files_differ:
            which = f"{alone[0]!r} is in one of them only" if alone else "the files differ, though their names do not"
            advice = "Compare runs of one test part; a split by ratio changes with run.seed."
            both = f"{first.folder} and {run.folder}"
            raise DataError(f"{both} were measured on different test images: {which}. {advice}")


def base_values(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Returns what the untuned models of these runs reach, means over their runs, by a name that tells them apart."""
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for run in runs:
        if run.before:
            groups.setdefault(tuple(sorted(run.base.items())), []).append(run.before)
    models = [dict(group) for group in groups]
    result = {}
    for model, values in zip(models, groups.values(), strict=True):
        other = [key for key in model if key != "model.name" and any(model[key] != m.get(key) for m in models)]
        words = [f"{key.removeprefix('model.')}={model[key]}" for key in other if model[key] != "None"]
        name = ", ".join([model.get("model.name", "model not known"), *words])
        result[name] = {metric: _mean([value[metric] for value in values]) for metric in values[0]}
    return result


def _load_sweep(folder: Path, one: list[Column]) -> tuple[list[Column], list[Method]]:
    content = parse_yaml((folder / "sweep.yaml").read_text(encoding="utf-8")).value
    named = (content.get("tasks") or {}).items()
    tasks = [Column(name, task["title"], task.get("group")) for name, task in named] or one
    methods = {name: Method(name, row["title"], sweep=folder) for name, row in content["cells"].items()}
    for name, row in content["cells"].items():
        for task in (task.name for task in tasks if row.get("only") is None or task.name in row["only"]):
            cells = [folder / "cells" / task / f"{name}_{seed}" for seed in content["seeds"]]
            runs = tuple(_load_run(cell) for cell in cells if (cell / "cell.json").is_file())
            methods[name].rows[task] = Row(row["title"], runs, len(cells))
    return tasks, list(methods.values())


def _load_run(folder: Path) -> Run:
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = folder / "splits" / "test.txt"
    task = _task_of(metrics)
    return Run(
        folder=folder,
        task=task.name,
        words=task.words,
        report=task.load_report(folder),  # it says what is wrong with a folder that is no run
        facts=_facts(folder),
        trainable=metrics.get("trainable") or {},
        before={name: math.nan if v is None else v for name, v in (metrics.get("before") or {}).items()} or None,
        saved_bytes=(folder / SAVED).stat().st_size if (folder / SAVED).is_file() else None,
        images=names.read_text(encoding="utf-8") if names.is_file() else None,
    )


def _task_of(metrics: Mapping[str, Any]) -> type[Task[Any]]:
    """Returns the task that a `metrics.json` is of: what it says, or whose headline it has; the first if neither."""
    tasks = {name: entry.load() for name, entry in TASKS.items()}
    named = tasks.get(metrics.get("task", ""))
    return named or next((task for task in tasks.values() if task.words.choice in metrics), next(iter(tasks.values())))


def _facts(folder: Path) -> dict[str, Any]:
    if (folder / "cell.json").is_file():
        return dict(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    if not (folder / "config.yaml").is_file():
        return {}
    config = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8")).value
    events = read_history(folder / HISTORY) if (folder / HISTORY).is_file() else []
    return {"lr": config["train"]["lr"], "seed": config["run"]["seed"], "settings": flatten(config)} | costs(events)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.mean(defined) if defined else math.nan  # exact: the mean of equal values is that value
