"""The per-image table of an evaluation, and the numbers that derive from it.

Rows come first: every mean, interval and comparison can be computed again from `per_image.csv`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from samtune.errors import DataError
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap
from samtune.metrics.report import AnyReport, Gains, not_a_report, read_report
from samtune.metrics.table import POOLED_METRICS

ROW_METRICS = ("dice", "iou", "precision", "recall")
SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.2), "large": (0.2, math.inf)}
"""Part of the picture that the object covers: from (included), to (excluded)."""

_COLUMNS = ("name", *ROW_METRICS, "truth_px", "pred_px")


@dataclass(frozen=True)
class Report(AnyReport):
    """The result of an evaluation: rows, and what derives from them.

    Attributes:
        rows: one per image.
        split: which part of the data was evaluated.
        definition: a sentence for each reported number.
    """

    task: ClassVar[str] = "segmentation"
    rows: tuple[Row, ...]
    split: str
    definition: dict[str, str]

    @property
    def mDice(self) -> float:
        """Mean Dice over the images."""
        return _mean(row.dice for row in self.rows)

    @property
    def mIoU(self) -> float:
        """Mean IoU over the images."""
        return _mean(row.iou for row in self.rows)

    @property
    def values(self) -> dict[str, float]:
        """The headline numbers by name."""
        return {"mDice": self.mDice, "mIoU": self.mIoU}

    @property
    def images(self) -> list[str]:
        """Name of the image of each row; with a prompt an image has a row `name#1`, `name#2`, ... per object."""
        prompted = "object" in self.definition.get("mDice", "")
        return [re.sub(r"#\d+$", "", row.name) if prompted else row.name for row in self.rows]

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(set(self.images))

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals (low, high) of mDice and mIoU; images are drawn, with all their objects."""
        return {
            "mDice": bootstrap_ci([row.dice for row in self.rows], images=self.images),
            "mIoU": bootstrap_ci([row.iou for row in self.rows], images=self.images),
        }

    @property
    def metrics(self) -> dict[str, float]:
        """Every number of the report: means over images, pooled metrics, three sizes of objects, counts.

        `<name>_undefined` counts the images that a mean leaves out; it appears where there are any.
        """
        columns = {name: [getattr(row, name) for row in self.rows] for name in ROW_METRICS}
        columns |= {name: [row.extra[name] for row in self.rows] for name in self._extra_names()}
        columns.pop("truth_share", None)
        result = {name: _mean(values) for name, values in columns.items()}
        counts = [sum(getattr(row, px) for row in self.rows) for px in ("overlap_px", "pred_px", "truth_px")]
        result |= {name: pool(*counts) for name, pool in POOLED_METRICS.items() if name in self.definition}
        for size, (low, high) in SIZES.items():
            rows = [row for row in self.rows if row.truth_px and low <= row.extra.get("truth_share", math.nan) < high]
            result[f"{size}_images"] = len(rows)
            result[f"{size}_dice"] = _mean(row.dice for row in rows)
            result[f"{size}_iou"] = _mean(row.iou for row in rows)
        result["both_empty"] = sum(row.truth_px + row.pred_px == 0 for row in self.rows)
        undefined = {name: sum(map(math.isnan, values)) for name, values in columns.items()}
        return result | {f"{name}_undefined": count for name, count in undefined.items() if count}

    def gain(self, before: Report) -> Gains:
        """Returns `compare_reports` of another model on the same images and this one."""
        return compare_reports(before, self)

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Returns the columns and rows of `per_image.csv`."""
        extra = self._extra_names()
        rows = [[*(getattr(row, c) for c in _COLUMNS), *(row.extra[name] for name in extra)] for row in self.rows]
        return [*_COLUMNS, *extra], list(rows)

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Reads back what `save` wrote into `folder`.

        Raises:
            DataError: a file is missing or has another form.
        """
        content, records = read_report(folder)
        try:
            return cls(tuple(map(_row, records)), content["split"], content["definition"])
        except (ValueError, KeyError, TypeError) as err:
            raise not_a_report(folder, "an evaluation of masks", err) from err

    def _extra_names(self) -> list[str]:
        return list(self.rows[0].extra) if self.rows else []


@dataclass(frozen=True)
class Row:
    """What was measured on one image; NaN where a metric is undefined.

    Attributes:
        name: of the image or component.
        dice: see `samtune.metrics.overlap`, as for the next three.
        iou: Jaccard index.
        precision: part of the prediction that is right.
        recall: part of the truth that is found.
        truth_px: foreground pixels of the truth, original size.
        pred_px: foreground pixels of the prediction, original size.
        extra: further metrics by name, and `truth_share`, the part of the picture that the object covers.
    """

    name: str
    dice: float
    iou: float
    precision: float
    recall: float
    truth_px: int
    pred_px: int
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def overlap_px(self) -> int:
        """Pixels that are foreground in both masks: Dice * (truth + prediction) / 2."""
        total = self.truth_px + self.pred_px
        return round(self.dice * total / 2) if total else 0


def compare_reports(a: Report, b: Report) -> dict[str, tuple[float, float, float]]:
    """Compares two evaluations of the same images by the paired bootstrap.

    Returns:
        For mDice and mIoU: (mean of b - a, low, high) with the 95 % interval.

    Raises:
        DataError: the reports are of different images.
    """
    rows_a, rows_b = ({row.name: row for row in report.rows} for report in (a, b))
    alone = sorted(rows_a.keys() ^ rows_b.keys())
    if alone:
        raise DataError(
            f"the reports are of different images: {len(alone)} are in one report only, such as "
            f"{alone[0]!r}. Evaluate both models on the same split."
        )
    return {
        name: paired_bootstrap(
            [getattr(row, column) for row in a.rows],
            [getattr(rows_b[row.name], column) for row in a.rows],
            images=a.images,
        )
        for name, column in (("mDice", "dice"), ("mIoU", "iou"))
    }


def _row(record: Mapping[str, str]) -> Row:
    return Row(
        name=record["name"],
        truth_px=int(record["truth_px"]),
        pred_px=int(record["pred_px"]),
        extra={name: float(value) for name, value in record.items() if name not in _COLUMNS},
        dice=float(record["dice"]),
        iou=float(record["iou"]),
        precision=float(record["precision"]),
        recall=float(record["recall"]),
    )


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
