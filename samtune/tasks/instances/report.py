"""The per-image table of an evaluation of instances, and every number that derives from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samtune.console import Table
from samtune.errors import DataError
from samtune.metrics.instances import (
    DEFINITIONS,
    THRESHOLDS,
    Matches,
    aggregated_jaccard,
    numbers,
    panoptic_quality,
    resampled_precision,
)
from samtune.metrics.report import AnyReport, Gains, Intervals, Kept, not_a_report, read_kept, read_report
from samtune.tasks.probe.answers import KINDS, MOST, Dice

RESAMPLES = 1000
BOXED = "mDice"
_FROM_TRUTH = "The prompts come from the true objects: with those of a person the numbers would be lower."
INSTANCE_DEFINITIONS = DEFINITIONS | {
    "ci95": "95 % percentile bootstrap interval of the number of a resampled set (1000 resamples of the images, each "
    "with all its objects, seed 0); of a gain, both models on the same resamples.",
    **{
        f"{BOXED}_{kind}": f"Mean over objects of the Dice of the mask that answers {what}; of an image at most {MOST} "
        f"objects, spread over its numbers. {_FROM_TRUTH}"
        for kind, what in KINDS.items()
    },
}
INSTANCE_DEFINITIONS[BOXED] = INSTANCE_DEFINITIONS[f"{BOXED}_box"]
_COUNTS = ("truth", "found", "pairs", "pair_iou", "joined_px", "union_px")
_COLUMNS = ("name", "AP50", "PQ", "AJI", *_COUNTS, "detections", "asked")

Floats = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[[Sequence["InstanceRow"]], float]


@dataclass(frozen=True)
class InstanceRow:
    """What was measured on one image.

    Attributes:
        matches: what of it counts.
        asked: number of objects that were prompted for; 0 where prompts were not measured, or there is no object.
        dice: kind of prompt -> mean Dice of these.
    """

    name: str
    matches: Matches
    asked: int = 0
    dice: Dice = field(default_factory=dict)

    @property
    def ap50(self) -> float:
        """The image's own AP50; NaN where it has no object."""
        return own_ap50(self.matches)

    @property
    def pq(self) -> float:
        """The image's own PQ; NaN where it has no object, and none was found."""
        return panoptic_quality([self.matches])

    @property
    def boxed(self) -> float:
        """Mean Dice of its objects by their boxes; NaN where none was asked for."""
        return self.dice.get("box", math.nan)


@dataclass(frozen=True)
class InstanceReport(AnyReport):
    """The result of an evaluation of instances; see `AnyReport`."""

    task: ClassVar[str] = "instances"
    rows: tuple[InstanceRow, ...]
    split: str
    definition: dict[str, str]
    answers: Mapping[str, Sequence[Matches]] = field(default_factory=dict)
    """Key of an answer that needs no model -> what it finds in the images of the rows; empty where not measured."""
    kept: Kept = field(default_factory=dict)

    @property
    def trivial(self) -> dict[str, list[float]]:  # type: ignore[override]
        """Of these answers, the images' own AP50."""
        return {key: [own_ap50(one) for one in found] for key, found in self.answers.items()}

    @property
    def n_images(self) -> int:
        return len(self.rows)

    @property
    def values(self) -> dict[str, float]:
        found = {name: value for name, value in self._numbers.items() if name != "count_error"}
        return found | ({BOXED: self.prompted["box"]} if "box" in self.prompted else {})

    @property
    def prompted(self) -> dict[str, float]:
        """Kind of prompt -> mean Dice over the objects; empty where prompts were not measured."""
        kinds = [kind for kind in KINDS if any(kind in row.dice for row in self.rows)]
        return {kind: _dice(kind)(self.rows) for kind in kinds}

    @cached_property
    def ci95(self) -> Intervals:
        return {name: _interval(drawn) for name, drawn in self._resampled.items()}

    @property
    def metrics(self) -> dict[str, float]:
        by_prompt = {f"{BOXED}_{kind}": value for kind, value in self.prompted.items()}
        objects = {key: sum(getattr(row.matches, key) for row in self.rows) for key in ("truth", "found")}
        return {**self.values, **by_prompt, "count_error": self._numbers["count_error"], **_named(objects)}

    def gain(self, before: InstanceReport) -> Gains:
        """Compares with another model on the same images: both on the same resamples of them.

        Raises:
            DataError: the reports are of different images.
        """
        theirs = {row.name: row for row in before.rows}
        if alone := sorted(theirs.keys() ^ {row.name for row in self.rows}):
            raise DataError(
                f"the reports are of different images: {len(alone)} are in one report only, such as {alone[0]!r}. "
                "Evaluate both models on the same split."
            )
        same = replace(before, rows=tuple(theirs[row.name] for row in self.rows))
        old, new = same._resampled, self._resampled
        both = [name for name in new if name in old]
        return {name: (self.values[name] - same.values[name], *_interval(new[name] - old[name])) for name in both}

    def table(self) -> tuple[Sequence[str], list[Sequence[object]]]:
        """Returns the columns; `detections` has SCORE:HITS of each found object, a bit for each IoU from 0.5 on."""
        kinds, rows = list(self.prompted), list[Sequence[object]]()
        for row in self.rows:
            one = row.matches
            own = (row.ap50, row.pq, aggregated_jaccard([one]))
            dice = [row.dice.get(kind, math.nan) for kind in kinds]
            rows.append([row.name, *own, *(getattr(one, c) for c in _COUNTS), _text(one), row.asked, *dice])
        return [*_COLUMNS, *(f"dice_{kind}" for kind in kinds)], rows

    def to_json(self, before: AnyReport | None = None, trainable: Mapping[str, float] | None = None) -> dict[str, Any]:
        content = super().to_json(before, trainable)
        old = before.prompted if isinstance(before, InstanceReport) else {}
        by_prompt = self._prompts(before)
        for kind, value in self.prompted.items():
            by_prompt[kind] = {BOXED: value, "before": old.get(kind)} | by_prompt.get(kind, {})
        trivial = {key: numbers(found)["AP50"] for key, found in self.answers.items()}  # of the set, as AP50 is
        defined = {key: value for key, value in trivial.items() if not math.isnan(value)}
        return content | {"prompts": by_prompt or None, "trivial": defined or None}

    def to_table(self, before: AnyReport | None = None) -> Table:
        """Returns the headline numbers, and below them those without an interval: clicks, and the counts."""
        table = super().to_table(before)
        rows: list[Sequence[object]] = []
        for name in (f"{BOXED}_point", f"{BOXED}_points3", "count_error"):
            found = [report.metrics.get(name, math.nan) for report in (before, self) if report is not None]
            if name in self.metrics:
                rows.append([name, *found, *[""] * (len(table.columns) - 1 - len(found))])
        return replace(table, rows=[*table.rows, *rows])

    @classmethod
    def load(cls, folder: Path) -> InstanceReport:
        """Reads back what `save` wrote; raises as `read_report`."""
        content, records = read_report(folder)
        try:
            return cls(tuple(map(_row, records)), content["split"], content["definition"], kept=read_kept(content))
        except (ValueError, KeyError, TypeError) as err:
            raise not_a_report(folder, "an evaluation of instances", err) from err

    @cached_property
    def _numbers(self) -> dict[str, float]:
        return numbers([row.matches for row in self.rows])

    @cached_property
    def _resampled(self) -> dict[str, Floats]:
        """Returns what `values` are in each of the resamples of the images."""
        count, rng = len(self.rows), np.random.default_rng(0)
        drawn = [
            [self.rows[place] for place in rng.integers(count, size=count)] for _ in range(RESAMPLES if count else 0)
        ]
        found = {name: np.array([of(rows) for rows in drawn]) for name, of in self._statistics().items()}
        precision = np.array([resampled_precision([row.matches for row in rows]) for rows in drawn]).reshape(-1, 10)
        return {
            name: found[name] if name in found else precision[:, : 1 if name == "AP50" else 10].mean(axis=1)
            for name in self.values
        }

    def _statistics(self) -> dict[str, Statistic]:
        """Returns the headline numbers but AP, each as a function of rows."""
        return {
            "PQ": lambda rows: panoptic_quality([row.matches for row in rows]),
            "AJI": lambda rows: aggregated_jaccard([row.matches for row in rows]),
            BOXED: _dice("box"),
        }


def own_ap50(one: Matches) -> float:
    """Returns the AP50 of one image alone; NaN where it has no object."""
    return float(resampled_precision([one])[0])


def _named(objects: Mapping[str, float]) -> dict[str, float]:
    return {"objects_true": objects["truth"], "objects_found": objects["found"]}


def _dice(kind: str) -> Statistic:
    """Returns the mean over objects of the Dice by a kind of prompt, as a function of rows; NaN without any."""

    def mean(rows: Sequence[InstanceRow]) -> float:
        asked = [(row.asked, row.dice[kind]) for row in rows if kind in row.dice]
        total = sum(count for count, _ in asked)
        return sum(count * value for count, value in asked) / total if total else math.nan

    return mean


def _interval(drawn: Floats) -> tuple[float, float]:
    if not drawn.size or np.isnan(drawn).all():
        return math.nan, math.nan
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _text(one: Matches) -> str:
    bits = (one.hits * (1 << np.arange(len(THRESHOLDS)))[:, None]).sum(axis=0)
    return " ".join(f"{score:.9g}:{mask}" for score, mask in zip(one.scores.tolist(), bits.tolist(), strict=True))


def _row(record: Mapping[str, str]) -> InstanceRow:
    cells = [cell.partition(":") for cell in record["detections"].split()]
    bits = np.array([int(mask) for *_, mask in cells], dtype=np.int64)
    hits = (bits[None, :] >> np.arange(len(THRESHOLDS))[:, None]) & 1 > 0
    scores = np.array([float(score) for score, *_ in cells], dtype=np.float64)
    counts = {key: int(record[key]) for key in _COUNTS if key != "pair_iou"}
    matches = Matches(scores=scores, hits=hits, pair_iou=float(record["pair_iou"]), **counts)
    dice = {kind: float(record[f"dice_{kind}"]) for kind in KINDS if f"dice_{kind}" in record}
    defined = {kind: value for kind, value in dice.items() if not math.isnan(value)}
    return InstanceRow(record["name"], matches, int(record["asked"]), defined)
