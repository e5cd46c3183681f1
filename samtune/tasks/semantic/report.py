"""The per-image table of an evaluation of several classes, and every number that derives from it.

A row has the image's confusion counts; one confusion matrix over the set is their sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samtune.errors import DataError
from samtune.metrics.report import AnyReport, Gains, Intervals, not_a_report, read_report
from samtune.types import IGNORE, ClassMap

RESAMPLES = 1000
MAP_DEFINITIONS = {
    "mIoU": "Mean over the classes in the truth of the set of TP / (TP + FP + FN), from one confusion matrix over all "
    "its pixels; pixels of ignore_index count nowhere.",
    "mDice": "Mean over the classes in the truth of the set of 2 TP / (2 TP + FP + FN), from the same matrix.",
    "ci95": "95 % percentile bootstrap interval of the number of a resampled set (1000 resamples of the images, seed "
    "0); of a gain, both models on the same resamples.",
    "per_class": "IoU, Dice, precision and recall of each class from the same matrix, with its pixels in truth and "
    "prediction; null where undefined.",
    "pixel_accuracy": "Share of the counted pixels of the set whose class is right.",
    "image_iou": "Mean over images of the IoU of an image's own confusion matrix, mean over the classes in its truth.",
    "image_dice": "As image_iou, of the Dice.",
    "worst_class_iou": "Lowest IoU of a class in the truth of the set.",
    "absent_classes": "Number of classes without a pixel in the truth; no mean counts them.",
}
_COLUMNS = ("name", "iou", "dice", "accuracy", "pixels", "confusion")

Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class MapRow:
    """What was measured on one image: of each pair of classes that met, (truth, prediction, pixels)."""

    name: str
    cells: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, name: str, found: ClassMap, truth: ClassMap) -> MapRow:
        """Counts the pixels of one image, both maps at its original size."""
        counted = truth != IGNORE
        pairs = truth[counted].astype(np.int64) * (IGNORE + 1) + found[counted]
        counts = np.bincount(pairs)
        met = np.flatnonzero(counts)
        return cls(name, tuple((int(pair) >> 8, int(pair) & IGNORE, int(counts[pair])) for pair in met))

    def matrix(self, classes: int) -> Counts:
        """Returns the (n, n) confusion counts: truth down, prediction across."""
        matrix = np.zeros((classes, classes), dtype=np.int64)
        for truth, found, count in self.cells:
            matrix[truth, found] = count
        return matrix

    @property
    def iou(self) -> float:
        """The image's own mean IoU; NaN where no pixel counts."""
        return self._mean("iou")

    @property
    def dice(self) -> float:
        """The image's own mean Dice; NaN where no pixel counts."""
        return self._mean("dice")

    @property
    def accuracy(self) -> float:
        """Share of the image's counted pixels whose class is right; NaN where no pixel counts."""
        right = sum(count for truth, found, count in self.cells if truth == found)
        return right / self.pixels if self.pixels else math.nan

    def iou_of(self, place: int) -> float:
        """Returns the image's own mean IoU of an answer that is one class everywhere; NaN where no pixel counts."""
        truth: Counter[int] = Counter()
        for shown, _, count in self.cells:
            truth[shown] += count
        return truth[place] / self.pixels / len(truth) if truth else math.nan

    @property
    def pixels(self) -> int:
        """Number of pixels that count."""
        return sum(count for *_, count in self.cells)

    def _mean(self, name: str) -> float:
        classes = 1 + max((max(truth, found) for truth, found, _ in self.cells), default=0)
        return float(_mean_of(scores(_margins(self.matrix(classes)))[name], self.matrix(classes).sum(axis=1)))


@dataclass(frozen=True)
class MapReport(AnyReport):
    """The result of an evaluation of several classes; see `AnyReport`."""

    task: ClassVar[str] = "semantic"
    rows: tuple[MapRow, ...]
    split: str
    classes: tuple[str, ...]
    definition: dict[str, str]
    trivial: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        return len(self.rows)

    @property
    def values(self) -> dict[str, float]:
        return {name: float(value) for name, value in _headlines(self._counts.sum(axis=0)).items()}

    @property
    def ci95(self) -> Intervals:
        return {name: _interval(drawn) for name, drawn in self._resampled().items()}

    @property
    def metrics(self) -> dict[str, float]:
        ious = self.per_class()["iou"]
        there = self.confusion().sum(axis=1) > 0
        return {
            **self.values,
            "pixel_accuracy": self.accuracy,
            "image_iou": _nan_mean([row.iou for row in self.rows]),
            "image_dice": _nan_mean([row.dice for row in self.rows]),
            "worst_class_iou": float(ious[there].min()) if there.any() else math.nan,
            **({} if there.all() else {"absent_classes": int((~there).sum())}),
        }

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels whose class is right."""
        matrix = self.confusion()
        return float(np.trace(matrix) / matrix.sum()) if matrix.any() else math.nan

    def confusion(self) -> Counts:
        """Returns (n, n) counts of pixels over the set: true class down, predicted class across."""
        matrix = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for row in self.rows:
            for truth, found, count in row.cells:
                matrix[truth, found] += count
        return matrix

    def per_class(self) -> dict[str, Floats]:
        """Returns `iou`, `dice`, `precision` and `recall`, (n,) each; NaN where undefined."""
        return scores(self._counts.sum(axis=0))

    def label_name(self, label: int) -> str:
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def gain(self, before: MapReport) -> Gains:
        """Compares with another model on the same images: both on the same resamples of them.

        Raises:
            DataError: the reports are of different images or classes.
        """
        if before.classes != self.classes:
            raise DataError(f"the reports are of different classes: {before.classes} and {self.classes}.")
        theirs = {row.name: row for row in before.rows}
        if alone := sorted(theirs.keys() ^ {row.name for row in self.rows}):
            raise DataError(
                f"the reports are of different images: {len(alone)} are in one report only, such as {alone[0]!r}. "
                "Evaluate both models on the same split."
            )
        same = MapReport(tuple(theirs[row.name] for row in self.rows), before.split, before.classes, before.definition)
        old, new = same._resampled(), self._resampled()
        return {name: (self.values[name] - same.values[name], *_interval(new[name] - old[name])) for name in new}

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Returns the columns; `confusion` has TRUTH>PREDICTION:PIXELS of each pair of classes, by their places."""
        rows: list[Sequence[object]] = []
        for row in self.rows:
            met = " ".join(f"{truth}>{found}:{count}" for truth, found, count in row.cells)
            rows.append([row.name, row.iou, row.dice, row.accuracy, row.pixels, met])
        return _COLUMNS, rows

    def to_json(self, before: AnyReport | None = None, trainable: Mapping[str, float] | None = None) -> dict[str, Any]:
        found, matrix = self.per_class(), self.confusion()
        per_class = {
            name: {metric: None if math.isnan(values[i]) else float(values[i]) for metric, values in found.items()}
            | {"truth_px": int(matrix[i].sum()), "pred_px": int(matrix[:, i].sum())}
            for i, name in enumerate(self.classes)
        }
        own = {"classes": list(self.classes), "per_class": per_class, "confusion": matrix.tolist()}
        return super().to_json(before, trainable) | own

    @classmethod
    def load(cls, folder: Path) -> MapReport:
        """Reads back what `save` wrote; raises as `read_report`."""
        content, records = read_report(folder)
        try:
            rows = tuple(MapRow(record["name"], _cells(record["confusion"])) for record in records)
            return cls(rows, content["split"], tuple(content["classes"]), content["definition"])
        except (ValueError, KeyError, TypeError) as err:
            raise not_a_report(folder, "an evaluation of several classes", err) from err

    @cached_property
    def _counts(self) -> Counts:
        """(images, 3, n) pixels of each class that are right, in the prediction, in the truth."""
        if not self.rows:
            return np.zeros((0, 3, len(self.classes)), dtype=np.int64)
        return np.stack([_margins(row.matrix(len(self.classes))) for row in self.rows])

    def _resampled(self) -> dict[str, Floats]:
        """Returns what `values` are in each of the resamples: images are drawn, and their counts summed."""
        count = len(self.rows)
        if not count:
            return {}
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        return _headlines(np.tensordot(drawn, self._counts, axes=1))  # (RESAMPLES, 3, n)


def scores(margins: Counts) -> dict[str, Floats]:
    """Returns the numbers of classes from (..., 3, n) pixels, (right, predicted, true); (..., n) each."""
    right, found, truth = np.moveaxis(margins, -2, 0)
    return {
        "iou": _ratio(right, found + truth - right),
        "dice": _ratio(2 * right, found + truth),
        "precision": _ratio(right, found),
        "recall": _ratio(right, truth),
    }


def _headlines(margins: Counts) -> dict[str, Floats]:
    """Returns mIoU and mDice, (...), of (..., 3, n) pixels."""
    each, truth = scores(margins), margins[..., 2, :]
    return {"mIoU": _mean_of(each["iou"], truth), "mDice": _mean_of(each["dice"], truth)}


def _mean_of(values: Floats, truth: Counts) -> Floats:
    """Returns the mean over the last axis of the values of classes that are in the truth."""
    there = truth > 0
    return _ratio(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1))


def _margins(matrix: Counts) -> Counts:
    return np.stack([np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1)])


def _ratio(part: Any, whole: Any) -> Floats:
    """Returns part / whole; NaN where `whole` is 0."""
    ratio: Floats = np.divide(part, whole, out=np.full(np.shape(whole), math.nan), where=np.asarray(whole) > 0)
    return ratio


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (math.nan, math.nan)
    return float(low), float(high)


def _nan_mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _cells(text: str) -> tuple[tuple[int, int, int], ...]:
    cells = []
    for cell in text.split():
        pair, _, count = cell.partition(":")
        truth, _, found = pair.partition(">")
        cells.append((int(truth), int(found), int(count)))
    return tuple(cells)
