"""What the reports of all tasks have in common: headline numbers, the files they are written to, reading them back."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from samtune.base.disk import replacing, write_json
from samtune.console import Table
from samtune.errors import DataError
from samtune.metrics.advice import uncertain
from samtune.metrics.trivial import TRIVIAL

Intervals = dict[str, tuple[float, float]]
Gains = dict[str, tuple[float, float, float]]
Kept = Mapping[str, Mapping[str, float]]
"""Place ("val", "scenes") -> kind of prompt -> mean Dice."""


class AnyReport(ABC):
    """The result of an evaluation: rows, and what derives from them.

    Attributes:
        rows: one per image or object, each with a `name`.
        split: which part of the data was evaluated.
        definition: a sentence for each reported number.
        trivial: key of an answer that needs no model -> what it reaches in each row of the number that choices are by;
            empty where it was not measured.
        kept: what is reached by each kind of prompt, so that it shows which are lost in tuning; empty likewise.
    """

    task: ClassVar[str]
    rows: tuple[Any, ...]
    split: str
    definition: dict[str, str]
    trivial: Mapping[str, Sequence[float]] = MappingProxyType({})
    kept: Kept = MappingProxyType({})

    @property
    @abstractmethod
    def values(self) -> dict[str, float]:
        """The headline numbers by name, in [0, 1]; the first is what choices are made by."""

    @property
    @abstractmethod
    def ci95(self) -> Intervals:
        """95 % bootstrap interval (low, high) of each headline number."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Every number of the report."""

    @property
    def images(self) -> list[str]:
        """Name of the image of each row."""
        return [row.name for row in self.rows]

    @property
    @abstractmethod
    def n_images(self) -> int:
        """Number of images."""

    @abstractmethod
    def gain(self, before: Any) -> Gains:
        """Returns (mean difference to `before`, low, high) of headline numbers, by the paired bootstrap."""

    @abstractmethod
    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Returns the columns and rows of `per_image.csv`."""

    def label_name(self, label: int) -> str:
        """Returns what a label of a row means; the number itself where labels have no names."""
        return str(label)

    @property
    def choice(self) -> float:
        """The number by which runs and epochs are chosen: the first of `values`."""
        return next(iter(self.values.values()))

    @property
    def doubts(self) -> list[str]:
        """Sentences on how far `choice` can be trusted; none where it can."""
        name = next(iter(self.values))
        return uncertain(self.ci95[name], n_images=self.n_images, name=name)

    @property
    def left_out(self) -> dict[str, float]:
        """What was measured on rows that the headline numbers leave out."""
        return {}

    def apart(self) -> list[str]:
        """Returns `left_out` in sentences; none where no row is left out."""
        return []

    def to_json(self, before: AnyReport | None = None, trainable: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Returns the content of `metrics.json` but for the advice; an undefined number is null.

        Args:
            before: of the untouched model on the same images; `gain` is the paired difference to it, with its 95 %
                bootstrap interval.
            trainable: parameter counts `selected`, `bias`, ..., `total`, `percent` of the tuned model.
        """
        gains = {} if before is None else self.gain(before)
        means = {key: float(np.nanmean(found)) for key, found in self.trivial.items() if not np.isnan(found).all()}
        return {
            "task": self.task,
            "split": self.split,
            "n_images": self.n_images,
            **_numbers(self.values),
            "ci95": {name: [_number(v) for v in interval] for name, interval in self.ci95.items()},
            "definition": self.definition | {key: TRIVIAL[key] for key in means if key in TRIVIAL},
            "metrics": _numbers(self.metrics),
            "before": _numbers(before.values) if before else None,
            "gain": {name: [_number(v) for v in gain] for name, gain in gains.items()} or None,
            "trivial": means or None,
            "trainable": dict(trainable) if trainable else None,
        }

    def _prompts(self, before: AnyReport | None) -> dict[str, dict[str, Any]]:
        """Returns kind of prompt -> place -> `mDice` now and `before`: `prompts` of tasks that measure them."""
        found: dict[str, dict[str, Any]] = {}
        old = {} if before is None else before.kept
        for place, kinds in self.kept.items():
            for kind, value in kinds.items():
                numbers = {"mDice": value, "before": old.get(place, {}).get(kind)}
                found.setdefault(kind, {})[place] = numbers
        return found

    def to_table(self, before: AnyReport | None = None) -> Table:
        """Returns the headline numbers for the terminal, with those of the untouched model and the gains if given."""
        intervals = {name: f"{low:.4f} to {high:.4f}" for name, (low, high) in self.ci95.items()}
        rows: list[Sequence[object]] = [(name, value, intervals[name]) for name, value in self.values.items()]
        columns: tuple[str, ...] = ("", "value", "95 % interval")
        if before is not None:
            columns, gains = ("", "before", "after", "95 % interval", "gain", "95 % interval"), self.gain(before)
            changes = {
                name: (f"{gain:+.4f}", f"{low:+.4f} to {high:+.4f}") for name, (gain, low, high) in gains.items()
            }
            rows = [
                (name, before.values[name], value, intervals[name], *changes[name])
                for name, value in self.values.items()
            ]
        apart = [*self.apart(), *(f"before: {line}" for line in (before.apart() if before else []))]
        notes = [f"{name}: {self.definition[name]}" for name in (next(iter(self.values)), "ci95")]
        return Table(columns, rows, f"{self.split}, {self.n_images} images", [*apart, *notes, *self.doubts])

    def save(
        self,
        folder: Path,
        *,
        before: AnyReport | None = None,
        trainable: Mapping[str, float] | None = None,
        advice: Sequence[str] = (),
    ) -> None:
        """Writes `metrics.json` and `per_image.csv` into `folder`, which is made if needed.

        Args:
            before, trainable: see `to_json`.
            advice: what a user should know beside the `doubts`.
        """
        folder = Path(folder)
        write_json(folder / "metrics.json", {**self.to_json(before, trainable), "advice": [*advice, *self.doubts]})
        columns, rows = self.table()
        with replacing(folder / "per_image.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])


def read_report(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Reads what `AnyReport.save` wrote: `metrics.json`, and the rows of `per_image.csv` by column.

    Raises:
        DataError: a file is missing or has another form.
    """
    try:
        content = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        with (Path(folder) / "per_image.csv").open(newline="", encoding="utf-8") as file:
            return dict(content), list(csv.DictReader(file))
    except (OSError, ValueError, TypeError) as err:
        raise not_a_report(folder, "an evaluation", err) from err


def read_kept(content: Mapping[str, Any]) -> Kept:
    """Returns `AnyReport.kept` of the content of a `metrics.json`."""
    found: dict[str, dict[str, float]] = {}
    for kind, places in (content.get("prompts") or {}).items():
        for place, numbers in places.items():
            if isinstance(numbers, dict):
                found.setdefault(place, {})[kind] = float(numbers["mDice"])
    return found


def not_a_report(folder: Path, kind: str, reason: Exception) -> DataError:
    """Words the error of a folder that does not hold a report of this kind."""
    advice = "Name a run folder, or make one with `samtune evaluate`."
    match reason:
        case OSError():
            why = f"{reason.filename}: {str(reason.strerror).lower()}"
        case KeyError():
            why = f"{reason} is missing in them"
        case _:
            why = str(reason)
    return DataError(f"{folder} does not hold metrics.json and per_image.csv of {kind} ({why}). {advice}")


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
