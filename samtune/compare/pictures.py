"""Which images do the rows of a comparison show side by side? Those whose pictures the runs left, where they differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samtune.base.paths import safe_name
from samtune.compare.read import Method, Run


@dataclass(frozen=True)
class Overlay:
    """What the first seed of a row made of an image: its picture, and its value of the first metric."""

    title: str
    value: float
    seed: int | None
    file: Path


@dataclass(frozen=True)
class SameImage:
    """One image in the rows that have a picture of it; `missing` has the titles of those that have none."""

    name: str
    why: str
    overlays: tuple[Overlay, ...]
    missing: tuple[str, ...]


Values = Sequence[float]


def _spread(values: Values) -> float:
    return max(values) - min(values)


_CHOICES: Sequence[tuple[str, Callable[[Values], float]]] = (
    ("the rows differ most", _spread),
    ("the rows differ most after that", _spread),
    ("the worst", lambda values: -statistics.fmean(values)),
    ("the best", statistics.fmean),
)


def same_images(methods: Sequence[Method]) -> list[SameImage]:
    """Returns up to four images of which two rows or more have a picture, on the first task that has any.

    They are those where the rows differ most, the worst and the best; an image that more rows show comes first.
    """
    for task in dict.fromkeys(task for method in methods for task in method.rows):
        firsts = {m.title: m.rows[task].runs[0] for m in methods if task in m.rows and m.rows[task].runs}
        found: dict[str, list[Overlay]] = {}
        for title, run in firsts.items():
            for name, overlay in _overlays(title, run):
                found.setdefault(name, []).append(overlay)
        if several := {name: overlays for name, overlays in found.items() if len(overlays) > 1}:
            return list(_choose(several, list(firsts)))
    return []


def _overlays(title: str, run: Run) -> Iterable[tuple[str, Overlay]]:
    """Yields (name of the image, what there is of it) of each picture in the folder of a run."""
    files = {file.name: file for file in (run.folder / "overlays").glob("*.png")}
    value = next(iter(run.metrics.values()))
    for row in run.report.rows if files else ():
        file = files.get(f"{safe_name(row.name)}.png")
        if file is not None and not math.isnan(value(row)):
            yield row.name, Overlay(title, value(row), run.seed, file)


def _choose(found: dict[str, list[Overlay]], titles: Sequence[str]) -> Iterable[SameImage]:
    left = dict(found)
    for why, key in _CHOICES[: len(found)]:
        ranks = {name: (len(those), key([overlay.value for overlay in those])) for name, those in left.items()}
        name = max(ranks, key=ranks.__getitem__)
        overlays = tuple(left.pop(name))
        shown = {overlay.title for overlay in overlays}
        yield SameImage(name, why, overlays, tuple(title for title in titles if title not in shown))
