"""How does every row differ from one of them? Paired differences over images and over seeds, tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samtune.base.paths import find_path
from samtune.compare.read import Method, Row
from samtune.compare.tables import Grid
from samtune.errors import ConfigError, DataError, did_you_mean
from samtune.metrics.paired import Effect, holm, over_images, over_seeds

Parts = tuple[tuple[str, ...], ...]
"""Tasks of a column, in parts: the column is the mean of the parts' means."""

AGAINST = {
    "difference": "Mean over the images of this row minus {row}, paired by image, each image averaged over the seeds "
    "that both rows have; with the 95 % interval of the paired bootstrap over the images (1000 resamples, seed 0) and "
    "the corrected p.",
    "p": "Two-sided, of no difference, by a sign-flip permutation test over the images (scipy; 9999 flips, seed 0, or "
    "all where there are fewer). It speaks about the choice of images, not about the luck of a run.",
    "p (Holm)": "The same, corrected for the number of rows by Holm's method.",
    "over seeds": "Mean over the seeds of the difference of the rows' means, with the 95 % interval and p of Student's "
    "t; of few seeds they are wide. It speaks about the luck of a run, not about the choice of images.",
}


@dataclass(frozen=True)
class Difference:
    """A row minus another: over the images, and over the seeds.

    Attributes:
        images_holm: the p-value of `images`, corrected for the number of rows; `seeds_holm` of `seeds`.
        shared: the seeds that both rows have; without any, the images are averaged over all seeds of each.
        left_out: the seeds that only one of them has.
    """

    images: Effect
    seeds: Effect
    images_holm: float | None = None
    seeds_holm: float | None = None
    shared: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()

    def to_text(self, number: Callable[[float, str], str]) -> str:
        """Returns difference, interval and corrected p, or why there are none; `number` writes a value with a sign."""
        if math.isnan(self.images.value):
            return self.images.why
        p = self.images.why if self.images_holm is None else f"p {_p_text(self.images_holm)}"
        return f"{_interval_text(self.images, number)}, {p}"

    def to_cells(self, number: Callable[[float, str], str]) -> list[str]:
        """Returns the texts of a row of `tests_grid`."""
        seeds = ", ".join(map(str, self.shared)) or "none in common"
        seeds += f"; left out: {', '.join(map(str, self.left_out))}" * bool(self.left_out)
        cells = [_p_text(self.images.p) or self.images.why, _p_text(self.images_holm)]
        cells += [_interval_text(self.seeds, number), _p_text(self.seeds.p) or self.seeds.why]
        return [*cells, _p_text(self.seeds_holm), "" if math.isnan(self.images.value) else seeds]

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers, unrounded; what is not known is null."""
        over = {"over_seeds": _effect_json(self.seeds, self.seeds_holm)}
        seeds = {"seeds": list(self.shared), "seeds_left_out": list(self.left_out)}
        return _effect_json(self.images, self.images_holm) | seeds | over


def find_method(methods: Sequence[Method], text: str) -> Method:
    """Returns the row that `text` names: its short name in the sweep, its title, or its run folder.

    Raises:
        ConfigError: no row or several have that name.
        DataError: the row has no run.
    """
    folder = find_path(text).resolve()
    found = [m for m in methods if text in (m.name, m.title) or folder in [run.folder.resolve() for run in m.runs]]
    names = [method.name for method in methods]
    known = ", ".join(f"{m.name} ({m.title})" if m.name != m.title else m.name for m in methods)
    if not found:
        raise ConfigError(f"--against {text}: there is no such row.{did_you_mean(text, names)} There are: {known}.")
    if len(found) > 1:
        raise ConfigError(f"--against {text}: {len(found)} rows have this name. Name a title or a run folder: {known}.")
    if not found[0].runs:
        ready = ", ".join(method.name for method in methods if method.runs)
        raise DataError(f"--against {text}: this row has no run yet. Run the sweep first, or name one of: {ready}.")
    return found[0]


def differences(
    methods: Sequence[Method], other: Method, parts: Parts, metric: str, *, scale: float = 1.0
) -> list[Difference | None]:
    """Returns of every row its difference to `other` in one column, times `scale`; None for that row itself."""
    found = [None if method is other else _difference(method, other, parts, metric, scale) for method in methods]
    known = [difference for difference in found if difference is not None]
    pairs = zip(holm([d.images.p for d in known]), holm([d.seeds.p for d in known]), strict=True)
    corrected = [
        Difference(d.images, d.seeds, *both, d.shared, d.left_out) for d, both in zip(known, pairs, strict=True)
    ]
    left = iter(corrected)
    return [None if difference is None else next(left) for difference in found]


def tests_grid(
    methods: Sequence[Method], found: Sequence[Difference | None], other: Method, number: Callable[[float, str], str]
) -> Grid:
    """Returns the table of the tests: a line for every row but `other`."""
    columns = (f"tests against {other.title}", "p", "p (Holm)", "over seeds", "its p", "its p (Holm)", "seeds")
    return columns, [[m.title, *d.to_cells(number)] for m, d in zip(methods, found, strict=True) if d is not None]


def definitions_against(other: Method) -> dict[str, str]:
    """Returns what the names in the columns of differences mean."""
    return {name: text.format(row=other.title) for name, text in AGAINST.items()}


def _difference(method: Method, other: Method, parts: Parts, metric: str, scale: float) -> Difference:
    none = Row("", (), 0)
    pairs = {task: (method.rows.get(task, none), other.rows.get(task, none)) for part in parts for task in part}
    for place, why in enumerate(("no run", f"no run of {other.title}")):
        if not all(both[place].runs for both in pairs.values()):
            return Difference(_nothing(why), _nothing(why))
    weights = {task: scale / len(parts) / len(part) for part in parts for task in part}
    seeds = [{seed for seed in row.seeds if seed is not None} for both in pairs.values() for row in both]
    shared, every = sorted(set.intersection(*seeds)), set.union(*seeds)
    if shared:
        pairs = {task: (mine.only(shared), theirs.only(shared)) for task, (mine, theirs) in pairs.items()}
    images = over_images([(weights[task], *_per_image(*both, metric)) for task, both in pairs.items()])
    by_seed = [sum(weights[task] * _gain(*both, metric, seed) for task, both in pairs.items()) for seed in shared]
    left_out = tuple(sorted(every - set(shared))) if shared else ()
    return Difference(images, over_seeds(by_seed), shared=tuple(shared), left_out=left_out)


def _per_image(mine: Row, theirs: Row, metric: str) -> tuple[list[float], list[str]]:
    """Returns the differences, and of each its image."""
    a, b = theirs.per_image(metric), mine.per_image(metric)
    return [b[name] - value for name, value in a.items()], theirs.images


def _gain(mine: Row, theirs: Row, metric: str, seed: int) -> float:
    return mine.only([seed]).spread(metric)[0] - theirs.only([seed]).spread(metric)[0]


def _nothing(why: str) -> Effect:
    return Effect(math.nan, math.nan, math.nan, None, why)


def _interval_text(effect: Effect, number: Callable[[float, str], str]) -> str:
    if math.isnan(effect.value):
        return ""
    bounds = "" if math.isnan(effect.low) else f" ({number(effect.low, '+')} to {number(effect.high, '+')})"
    return number(effect.value, "+") + bounds


def _p_text(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"


def _effect_json(effect: Effect, corrected: float | None) -> dict[str, Any]:
    value, low, high = (None if math.isnan(v) else v for v in (effect.value, effect.low, effect.high))
    bounds = None if low is None else (low, high)
    return {"difference": value, "ci95": bounds, "p": effect.p, "p_holm": corrected, "why": effect.why or None}
