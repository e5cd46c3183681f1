"""The per-image table of an evaluation, and every number that derives from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samtune.console import Table
from samtune.data.pairs import Pair
from samtune.errors import DataError
from samtune.metrics.advice import uncertain
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap
from samtune.metrics.report import AnyReport, Gains, Kept, not_a_report, read_kept, read_report
from samtune.metrics.table import METRICS, POOLED_METRICS, PROBABILITY_METRICS
from samtune.tasks.binary import MaskFacts, mask_facts

ROW_METRICS = ("dice", "iou", "precision", "recall")
DEFAULT_METRICS = ("mae", "pooled_dice", "pooled_iou")
SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.2), "large": (0.2, math.inf)}
"""Part of the picture that the object covers: from (included), to (excluded)."""
EMPTY_METRICS = ("empty_images", "empty_false", "empty_false_px", "empty_false_area")
"""What is measured on images without an object, and is in no mean."""

_HEADLINES = {"mDice": "dice", "mIoU": "iou"}
_COLUMNS = ("name", *ROW_METRICS, "truth_px", "pred_px")


@dataclass(frozen=True)
class Report(AnyReport):
    """The result of an evaluation of masks; see `AnyReport`."""

    task: ClassVar[str] = "segmentation"
    rows: tuple[Row, ...]
    split: str
    definition: dict[str, str]
    trivial: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)

    @property
    def mDice(self) -> float:
        """Mean Dice over the images with an object."""
        return _mean(row.dice for row in self.rows)

    @property
    def mIoU(self) -> float:
        """Mean IoU over the images with an object."""
        return _mean(row.iou for row in self.rows)

    @property
    def values(self) -> dict[str, float]:
        return {"mDice": self.mDice, "mIoU": self.mIoU}

    @property
    def images(self) -> list[str]:
        """Name of the image of each row; with a prompt an image has a row `name#1`, `name#2`, ... per object."""
        prompted = "object" in self.definition.get("mDice", "")
        return [re.sub(r"#\d+$", "", row.name) if prompted else row.name for row in self.rows]

    @property
    def n_images(self) -> int:
        return len(set(self.images))

    @property
    def doubts(self) -> list[str]:
        measured = {image for image, row in zip(self.images, self.rows, strict=True) if row.truth_px}
        return uncertain(self.ci95["mDice"], n_images=len(measured), name="mDice")

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals; images are drawn, with all their objects."""
        return {name: bootstrap_ci(self._column(m), images=self.images) for name, m in _HEADLINES.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """Every number of the report: means over images, pooled metrics, three sizes of objects, counts.

        All are of images with an object, but for `EMPTY_METRICS`. `<name>_undefined` counts the images that a mean
        leaves out; it appears where there are any.
        """
        with_object = [row for row in self.rows if row.truth_px]
        columns = {name: [getattr(row, name) for row in with_object] for name in ROW_METRICS}
        columns |= {name: [row.extra[name] for row in with_object] for name in self._extra_names()}
        columns.pop("truth_share", None)
        result = {name: _mean(values) for name, values in columns.items()}
        counts = [sum(getattr(row, px) for row in with_object) for px in ("overlap_px", "pred_px", "truth_px")]
        result |= {name: pool(*counts) for name, pool in POOLED_METRICS.items() if name in self.definition}
        for size, (low, high) in SIZES.items():
            rows = [row for row in with_object if low <= row.extra.get("truth_share", math.nan) < high]
            result[f"{size}_images"] = len(rows)
            result[f"{size}_dice"] = _mean(row.dice for row in rows)
            result[f"{size}_iou"] = _mean(row.iou for row in rows)
        undefined = {name: sum(map(math.isnan, values)) for name, values in columns.items()}
        result |= {f"{name}_undefined": count for name, count in undefined.items() if count}
        return result | self.left_out

    @property
    def left_out(self) -> dict[str, float]:
        """The `EMPTY_METRICS`; the number of images alone where it is 0, no area where no mask is false."""
        rows = [row for row in self.rows if not row.truth_px]
        false = [row for row in rows if row.pred_px]
        numbers: dict[str, float] = {"empty_images": len(rows)}
        if rows:
            numbers["empty_false"] = len(false) / len(rows)
        if false:
            numbers["empty_false_px"] = _mean(row.pred_px for row in false)
            # all that is predicted there is wrong, so the share of wrong pixels is that of the false mask
            numbers["empty_false_area"] = _mean(row.extra.get("mae", math.nan) for row in false)
        return numbers

    def apart(self) -> list[str]:
        numbers = self.left_out
        if not (count := numbers["empty_images"]):
            return []
        share = numbers["empty_false"]
        text = (
            f"{count:g} image{'s' * (count != 1)} without an object, in no mean: {share:.1%} of them with a false mask"
        )
        if share:
            area = numbers["empty_false_area"]
            part = "" if math.isnan(area) else f", {area:.2%} of the picture"
            text += f", {numbers['empty_false_px']:,.0f} px on average{part}"
        return [text]

    def gain(self, before: Report) -> Gains:
        return compare_reports(before, self)

    def to_json(self, before: AnyReport | None = None, trainable: Mapping[str, float] | None = None) -> dict[str, Any]:
        return super().to_json(before, trainable) | {"prompts": self._prompts(before) or None}

    def to_table(self, before: AnyReport | None = None) -> Table:
        """Returns the headline numbers, and below them the metrics that were asked for, which have no interval."""
        table, known = super().to_table(before), {**METRICS, **PROBABILITY_METRICS, **POOLED_METRICS}
        asked = [name for name in self.definition if name in known and name not in (*ROW_METRICS, *DEFAULT_METRICS)]
        values = [self.metrics, *([before.metrics] if before else [])][::-1]
        rows = [[name, *(found.get(name, math.nan) for found in values)] for name in asked]
        filled = [[*row, *[""] * (len(table.columns) - len(row))] for row in rows]
        return replace(table, rows=[*table.rows, *filled])

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        extra = self._extra_names()
        rows = [[*(getattr(row, c) for c in _COLUMNS), *(row.extra[name] for name in extra)] for row in self.rows]
        return [*_COLUMNS, *extra], list(rows)

    @classmethod
    def load(cls, folder: Path) -> Report:
        content, records = read_report(folder)
        try:
            return cls(tuple(map(_row, records)), content["split"], content["definition"], kept=read_kept(content))
        except (ValueError, KeyError, TypeError) as err:
            raise not_a_report(folder, "an evaluation of masks", err) from err

    def _column(self, name: str) -> list[Any]:
        return [getattr(row, name) for row in self.rows]

    def _extra_names(self) -> list[str]:
        return list(self.rows[0].extra) if self.rows else []


@dataclass(frozen=True)
class Row:
    """What was measured on one image; NaN where a metric is undefined, as the first four without an object.

    Attributes:
        name: of the image or component.
        dice: in [0, 1], as the next three; see `samtune.metrics.overlap`.
        truth_px: foreground pixels of the truth, original size; `pred_px` of the prediction.
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
        return round(self.dice * (self.truth_px + self.pred_px) / 2) if self.truth_px else 0


def compare_reports(a: Report, b: Report) -> dict[str, tuple[float, float, float]]:
    """Returns (mean of b - a, low, high) for mDice and mIoU, with the 95 % interval of the paired bootstrap.

    Raises:
        DataError: the reports are of different images.
    """
    rows_a, rows_b = ({row.name: row for row in report.rows} for report in (a, b))
    if alone := sorted(rows_a.keys() ^ rows_b.keys()):
        raise DataError(
            f"the reports are of different images: {len(alone)} are in one report only, such as {alone[0]!r}. "
            "Evaluate both models on the same split."
        )
    others = [rows_b[row.name] for row in a.rows]
    values = {name: [[getattr(row, m) for row in rows] for rows in (a.rows, others)] for name, m in _HEADLINES.items()}
    return {name: paired_bootstrap(*both, images=a.images) for name, both in values.items()}


def object_sides(pairs: Sequence[Pair], report: Report, *, tile: int | None = None) -> list[tuple[float, float]]:
    """Returns the side of a mean object of each row with one, and that of what shows it, both in pixels.

    Args:
        pairs: at least those of the report's images.
        tile: side of a tile; None where the longer side of a picture fills the input frame.
    """
    wanted = set(report.images)
    pairs = [pair for pair in pairs if pair.name in wanted]
    facts = dict(zip((pair.name for pair in pairs), mask_facts([pair.mask for pair in pairs]), strict=True))
    sides: list[tuple[float, float]] = []
    for name, row in zip(report.images, report.rows, strict=True):
        found = facts[name]
        if row.truth_px and isinstance(found, MaskFacts):
            objects = found.components if row.name == name else 1  # with a prompt a row is an object
            sides.append((math.sqrt(row.truth_px / objects), tile or max(found.width, found.height)))
    return sides


def _row(record: Mapping[str, str]) -> Row:
    truth_px, pred_px = int(record["truth_px"]), int(record["pred_px"])
    # earlier versions wrote 1 or 0 for an image without an object
    dice, iou, precision, recall = (float(record[name]) if truth_px else math.nan for name in ROW_METRICS)
    extra = {name: float(value) for name, value in record.items() if name not in _COLUMNS}
    return Row(record["name"], dice, iou, precision, recall, truth_px, pred_px, extra)


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
