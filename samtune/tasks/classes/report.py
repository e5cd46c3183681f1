"""The per-image table of a classification, and the numbers that derive from it.

Rows come first, as in `samtune.tasks.masks.report`: every mean, interval and comparison can be computed again from
`per_image.csv`, and every number but the probabilities from the ranks alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samtune.errors import DataError
from samtune.metrics.bootstrap import paired_bootstrap
from samtune.metrics.report import AnyReport, Gains, not_a_report, read_report

TOP_K = 5
ECE_BINS = 15
RESAMPLES = 1000

CLASS_DEFINITIONS: dict[str, str] = {
    "top1": "Share of the images whose own class has the largest logit; a tie counts as wrong.",
    "top5": "Share of the images whose own class is among the five largest logits; a tie counts against the model.",
    "mean_per_class": "Mean of the top-1 accuracies of the classes that have images.",
    "ci95": "95 % percentile bootstrap interval over images (1000 resamples, seed 0).",
    "n_classes": "Number of classes the model chooses from.",
    "absent_classes": "Number of classes without an image; no mean counts them.",
    "worst_class": "Lowest top-1 accuracy of a class that has images.",
    "nll": "Mean negative log-likelihood of the true class, in nats; a probability of 0 counts as 1.2e-38.",
    "ece": "Expected calibration error: mean gap of confidence and accuracy in 15 equal bins of confidence, by images.",
}

_KINDS: dict[str, Any] = dict(name=str, label=int, predicted=int, rank=int, probability=float, confidence=float)
"""Of the columns of `per_image.csv`."""

IntArray = np.ndarray[Any, np.dtype[np.int64]]
AnyArray = np.ndarray[Any, np.dtype[Any]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class ClassRow:
    """What a model said about one image.

    Attributes:
        label: index of the true class in `ClassReport.classes`.
        predicted: index of the class with the largest logit; `label` exactly when `rank` is 0.
        rank: number of other classes whose logit is as large as that of the true class, or larger: 0 is right. A tie
            counts against the model, so one that gives all classes the same logit is never right.
        probability: of the true class, by softmax.
        confidence: probability of the predicted class.
    """

    name: str
    label: int
    predicted: int
    rank: int
    probability: float
    confidence: float


@dataclass(frozen=True)
class ClassReport(AnyReport):
    """The result of a classification among `classes`: rows, and what derives from them. Accuracies are in [0, 1]."""

    task: ClassVar[str] = "classification"
    rows: tuple[ClassRow, ...]
    split: str
    classes: tuple[str, ...]
    definition: dict[str, str]
    trivial: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        return len(self.rows)

    @property
    def values(self) -> dict[str, float]:
        """`top1`, `top5` and `mean_per_class`; no `top5` where there are five classes or fewer."""
        values = {"top1": _mean(self._ranks == 0), "top5": _mean(self._ranks < TOP_K)}
        if len(self.classes) <= TOP_K:
            del values["top5"]
        return values | {"mean_per_class": float(_mean_of_defined(self.per_class()))}

    @cached_property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals (low, high) of `values`, all from the same resamples; see `_resampled`."""
        if not self.rows:
            return dict.fromkeys(self.values, (math.nan, math.nan))
        drawn = self._resampled()
        bounds = {name: np.quantile(drawn[name], [0.025, 0.975]) for name in self.values}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

    @property
    def metrics(self) -> dict[str, float]:
        per_class = self.per_class()
        absent = int(np.isnan(per_class).sum())
        probabilities = np.array([row.probability for row in self.rows], dtype=np.float64)
        return {
            **self.values,
            "n_classes": len(self.classes),
            **({"absent_classes": absent} if absent else {}),
            "worst_class": float(np.nanmin(per_class)) if self.rows else math.nan,
            "nll": _mean(-np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))),
            "ece": self._calibration_error(),
        }

    def confusion(self) -> IntArray:
        """Returns (C, C) counts of images: true class down, predicted class across."""
        count = len(self.classes)
        predicted = np.array([row.predicted for row in self.rows], dtype=np.int64)
        cells = np.bincount(self._labels * count + predicted, minlength=count * count)
        return cells.reshape(count, count)

    def per_class(self) -> FloatArray:
        """Returns the top-1 accuracy of each class, (C,); NaN for a class without an image."""
        count = len(self.classes)
        images = np.bincount(self._labels, minlength=count)
        right = np.bincount(self._labels[self._ranks == 0], minlength=count)
        return _ratio(right, images)

    def label_name(self, label: int) -> str:
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def gain(self, before: ClassReport) -> Gains:
        """Compares the top-1 accuracy of another model on the same images with this one's.

        Raises:
            DataError: the reports are of different images or classes.
        """
        if before.classes != self.classes:
            raise DataError(
                f"the reports are of different classes: {len(before.classes)} ({before.classes[0]}, ...) and "
                f"{len(self.classes)} ({self.classes[0]}, ...). Evaluate both models on the same data set."
            )
        old, new = ({row.name: float(row.rank == 0) for row in report.rows} for report in (before, self))
        if alone := sorted(old.keys() ^ new.keys()):
            raise DataError(
                f"the reports are of different images: {len(alone)} are in one report only, such as "
                f"{alone[0]!r}. Evaluate both models on the same split."
            )
        return {"top1": paired_bootstrap(list(old.values()), [new[name] for name in old])}

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        return [field.name for field in fields(ClassRow)], [astuple(row) for row in self.rows]

    def to_json(self, before: AnyReport | None = None, trainable: Mapping[str, float] | None = None) -> dict[str, Any]:
        return super().to_json(before, trainable) | {"classes": list(self.classes)}

    @classmethod
    def load(cls, folder: Path) -> ClassReport:
        """Reads back what `save` wrote; raises as `read_report`."""
        content, records = read_report(folder)
        try:
            rows = tuple(ClassRow(**{key: kind(record[key]) for key, kind in _KINDS.items()}) for record in records)
            return cls(rows, content["split"], tuple(content["classes"]), content["definition"])
        except (ValueError, KeyError, TypeError) as err:
            raise not_a_report(folder, "a classification", err) from err

    def _resampled(self) -> dict[str, FloatArray]:
        """Returns what `values` are in each of the resamples.

        No image is drawn one by one: the values depend only on how often each (class, outcome) is drawn, with the
        outcomes top-1, top-5 and wrong, and drawing n images with replacement makes these counts multinomial. So
        50,000 images of 1000 classes cost 3000 counts per resample instead of 50,000 draws.
        """
        count = len(self.classes)
        outcome = (self._ranks > 0).astype(np.int64) + (self._ranks >= TOP_K)
        cells = np.bincount(self._labels * 3 + outcome, minlength=3 * count)
        drawn = np.random.default_rng(0).multinomial(self.n_images, cells / self.n_images, size=RESAMPLES)
        drawn = drawn.reshape(RESAMPLES, count, 3)
        first, five, images = drawn[..., 0], drawn[..., :2].sum(axis=2), drawn.sum(axis=2)
        return {
            "top1": first.sum(axis=1) / self.n_images,
            "top5": five.sum(axis=1) / self.n_images,
            "mean_per_class": _mean_of_defined(_ratio(first, images)),
        }

    def _calibration_error(self) -> float:
        """Returns sum over bins of (images of the bin / images) * |accuracy - confidence| (Guo et al. 2017)."""
        confidences = np.array([row.confidence for row in self.rows], dtype=np.float64)
        bins = np.clip(np.ceil(confidences * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
        gaps = np.bincount(bins, weights=(self._ranks == 0) - confidences, minlength=ECE_BINS)
        return float(np.abs(gaps).sum() / self.n_images) if self.rows else math.nan

    @cached_property
    def _labels(self) -> IntArray:
        return np.array([row.label for row in self.rows], dtype=np.int64)

    @cached_property
    def _ranks(self) -> IntArray:
        return np.array([row.rank for row in self.rows], dtype=np.int64)


def _mean(values: AnyArray) -> float:
    return float(values.mean()) if values.size else math.nan


def _mean_of_defined(values: FloatArray) -> FloatArray:
    """Returns the mean over the last axis of what is not NaN; NaN where there is nothing."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _ratio(part: AnyArray, whole: AnyArray) -> FloatArray:
    """Returns part / whole; NaN where `whole` is 0."""
    ratio: FloatArray = np.divide(part, whole, out=np.full(np.shape(whole), math.nan), where=whole > 0)
    return ratio
