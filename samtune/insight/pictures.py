"""Charts of a selection: bars over blocks and operations, a heat map, overlap and noise by part.

Two series are told apart by the blue and the orange of Okabe and Ito, amounts by cividis: both can be read by
colour-blind people and in grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from samtune.base.figures import ACCENT, GRID, INK, new_axes
from samtune.insight.distribution import Distribution, Overlap, View
from samtune.insight.stability import Noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIRST, _SECOND, _BOTH, _REFERENCE = "#0072B2", "#E69F00", "#7b8291", "#6d7481"
_WIDTH, _HEIGHT = 5.0, 2.8  # inches; shown at half of a page that is 1000 px wide
_MOST_LABELS = 16
_PARTS = "part of the network (numbers: blocks)"


def shares(found: Distribution, view: View) -> Figure:
    """Draws the share of the selection in each part of the network, or in each kind of operation."""
    figure, axes = new_axes(_WIDTH, _HEIGHT)
    amounts = found.by(view)
    values = [100 * found.share(amount) for amount in amounts.values()]
    bars = axes.bar(range(len(values)), values, color=ACCENT, width=0.78)
    if len(values) <= 10:
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=9, color=INK)
        axes.margins(y=0.14)
    axes.set_ylabel("share of the selection (%)")
    _part_ticks(axes, list(amounts), _PARTS if view == "part" else view)
    return figure


def heat_map(found: Distribution) -> Figure:
    """Draws the share of the selection in each operation of each part; grey where a part lacks the operation."""
    parts, operations = list(found.by("part")), list(found.by("operation"))
    values = [
        [100 * found.share(found.cells[part, op]) if (part, op) in found.cells else math.nan for part in parts]
        for op in operations
    ]
    figure, axes = new_axes(2 * _WIDTH, 0.9 + 0.34 * len(operations))
    axes.set_facecolor(GRID)
    axes.grid(visible=False)
    columns, lines = ([index - 0.5 for index in range(len(labels) + 1)] for labels in (parts, operations))
    mesh = axes.pcolormesh(columns, lines, values, cmap="cividis", vmin=0)
    axes.invert_yaxis()
    axes.set_yticks(range(len(operations)), operations)
    _part_ticks(axes, parts)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.03)
    bar.set_label("share of the selection (%)", color=INK, fontsize=9.5)
    bar.ax.tick_params(length=0, labelcolor=INK, labelsize=9)
    bar.outline.set_visible(False)
    if len(parts) <= _MOST_LABELS:
        top = max((value for row in values for value in row if not math.isnan(value)), default=0)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    ink = "#000000" if value > 0.55 * top else "#ffffff"
                    axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8.5, color=ink)
    return figure


def overlap_bars(found: Overlap, *, names: tuple[str, str]) -> Figure:
    """Draws, for each part, which share of the entries chosen by either selection is chosen by one or by both."""
    shown = {part: pair for part, pair in found.parts.items() if pair.first or pair.second}
    figure, axes = new_axes(2 * _WIDTH, _HEIGHT)
    either = [pair.first + pair.second - pair.both for pair in shown.values()]
    amounts = (
        (f"only {names[0]}", _FIRST, [pair.first - pair.both for pair in shown.values()]),
        ("both (Jaccard index)", _BOTH, [pair.both for pair in shown.values()]),
        (f"only {names[1]}", _SECOND, [pair.second - pair.both for pair in shown.values()]),
    )
    bottoms = [0.0] * len(shown)
    for label, colour, values in amounts:
        heights = [100 * value / whole for value, whole in zip(values, either, strict=True)]
        axes.bar(range(len(shown)), heights, bottom=bottoms, color=colour, label=label, width=0.78)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    _percent_by_part(axes, list(shown), "of the entries of either (%)")
    return figure


def noise_bars(found: Noise) -> Figure:
    """Draws, for each part, the share of entries whose summed gradient is no larger than its standard error."""
    figure, axes = new_axes(2 * _WIDTH, _HEIGHT)
    parts = list(found.parts)
    for offset, label, colour, values in (
        (-0.2, "chosen entries", _FIRST, [100 * counts.chosen_share for counts in found.parts.values()]),
        (0.2, "all entries", _SECOND, [100 * counts.share for counts in found.parts.values()]),
    ):
        axes.bar([index + offset for index in range(len(parts))], values, color=colour, label=label, width=0.38)
    axes.axhline(100 * found.pure, color=_REFERENCE, linestyle="--", linewidth=1.2, label="if all were noise")
    _percent_by_part(axes, parts, "|sum| ≤ its error (%)")
    return figure


def _part_ticks(axes: Axes, parts: Sequence[str], label: str = _PARTS) -> None:
    """Labels the columns: blocks by their number, as many as there is room for; other names below, by their words."""
    short = [part.removeprefix("block ") for part in parts]
    every = math.ceil(len(parts) / _MOST_LABELS)
    places = [place for place, label in enumerate(short) if not label.isdecimal() or int(label) % every == 0]
    below = "\n" if any(label.isdecimal() for label in short) else ""
    labels = [short[p] if short[p].isdecimal() else below + short[p].replace("_", "\n") for p in places]
    axes.set_xticks(places, labels)
    axes.set_xlim(-0.5, len(parts) - 0.5)
    axes.set_xlabel(label)


def _percent_by_part(axes: Axes, parts: Sequence[str], label: str) -> None:
    """Finishes a chart of percentages, of several series, in each part of the network."""
    axes.set_ylim(0, 100)
    axes.set_ylabel(label)
    _part_ticks(axes, parts)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
