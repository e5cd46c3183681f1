"""The charts of a comparison that its page shows: effects as a forest plot, and cost against gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from samtune.base.figures import ACCENT, CARD, GRID, INK, new_axes
from samtune.compare.compare import Compared
from samtune.compare.read import Method
from samtune.compare.tables import cost_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SURE = 0.05
GAINS = {  # cost -> name, unit, factor
    "seconds": ("training time", "min", 1 / 60),
    "memory_mib": ("training memory", "MiB", 1.0),
}
WIDTH, HEIGHT, FONT = 9.0, 3.4, 9.5  # inches, inches, points
_LINE, _LETTER = 13.0, 5.6  # height of a line of text and width of a letter, points, about


def draw_effects(comparison: Compared) -> Figure | None:
    """Draws the difference of each row to `against`, with interval and corrected p; None without a difference.

    A dot is filled where the corrected p-value is below 0.05.
    """
    pairs = zip(comparison.methods, comparison.effects, strict=False)  # there are none without a row to compare with
    shown = [(label(m), d) for m, d in pairs if d is not None and not math.isnan(d.images.value)]
    if not shown or comparison.against is None:
        return None
    figure, axes = new_axes(WIDTH, 1.0 + 0.34 * len(shown))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for place, (_, found) in enumerate(shown):
        value, low, high = (comparison.factor * v for v in (found.images.value, found.images.low, found.images.high))
        sure = found.images_holm is not None and found.images_holm < SURE
        axes.plot([low, high], [place, place], color=ACCENT, linewidth=1.8, solid_capstyle="round")
        face = ACCENT if sure else CARD
        axes.plot(value, place, marker="o", markersize=7.5, color=ACCENT, markerfacecolor=face, markeredgewidth=1.6)
        words = found.to_text(comparison.number)
        axes.annotate(words, (1.0, place), (12, 0), ("axes fraction", "data"), "offset points", va="center", color=INK)
    axes.set_yticks(range(len(shown)), [title for title, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # the first row of the table on top
    axes.set_xlabel(f"{comparison.axis}, minus that of {label(comparison.against)}")
    return figure


def draw_gain(comparison: Compared, cost: str) -> Figure | None:
    """Draws the first metric of each row against one of its costs, a name of `GAINS`; None where no row has both."""
    title, unit, factor = GAINS[cost]
    costs = [cost_numbers(method)[cost] for method in comparison.methods]
    known = zip(comparison.methods, costs, comparison.scores, strict=True)
    points = [(factor * x, y, label(method)) for method, x, y in known if x is not None and y is not None]
    if not points:
        return None
    figure, axes = new_axes(WIDTH, HEIGHT)
    axes.set(xlabel=f"{title}, {unit}", ylabel=comparison.axis, xlim=(0.0, 1.05 * max(x for x, _, _ in points)))
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=ACCENT, markersize=7)
    axes.margins(y=0.12)
    _name(axes, points)
    return figure


def label(method: Method) -> str:
    """Returns the name of a row in a picture: its title, but for a folder its last part."""
    return method.name if method.title.endswith(f"/{method.name}") else method.title


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes a name beside each point, on the side of the middle, moved up where it would cover another."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    across, up = WIDTH * 72 * 0.9 / (right - left), HEIGHT * 72 * 0.75 / (high - low)  # points per unit, about
    taken: list[tuple[float, float, float]] = []  # left, right, bottom of each name
    for x, y, name in sorted(points, key=lambda point: point[1]):
        side = -1 if x > (left + right) / 2 else 1
        start, end = sorted((across * x + side * 9, across * x + side * (9 + _LETTER * len(name))))
        place = up * y
        for other_start, other_end, other in sorted(taken, key=lambda box: box[2]):
            if start < other_end and other_start < end and abs(place - other) < _LINE:
                place = other + _LINE
        taken.append((start, end, place))
        moved = (side * 9, place - up * y)
        ha = "left" if side > 0 else "right"
        axes.annotate(name, (x, y), moved, textcoords="offset points", ha=ha, va="center", color=INK, fontsize=FONT)
