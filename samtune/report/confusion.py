"""Which classes are taken for which? The picture of a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samtune.base.figures import GRID, INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERED = 12  # classes up to which the cells hold numbers
_LONGEST = 22  # characters of a class name in a picture


def draw_confusion(
    path: Path,
    counts: np.ndarray[Any, np.dtype[np.int64]],
    classes: Sequence[str],
    *,
    order: Sequence[int],
    title: str,
    what: str,
    most: int = 40,
) -> None:
    """Draws a confusion matrix as PNG: each row is the share of what belongs to one class, by answer.

    Cells hold percentages where there is room; a class without anything has a grey row.

    Args:
        counts: (n, n), true class down, answer across.
        order: classes, the worst first: of more than `most`, these are shown, and the answers outside of them in one
            column.
        title: what the model reaches, a clause.
        what: is counted, such as "images".
    """
    total = len(classes)
    shown = list(range(total)) if total <= most else list(order[:most])
    cells = counts[np.ix_(shown, shown)].astype(np.float64)
    columns = [classes[index] for index in shown]
    if len(shown) < total:
        outside = counts[shown].sum(axis=1) - cells.sum(axis=1)
        cells = np.concatenate([cells, outside[:, None]], axis=1)
        columns.append("any other class")
    sums = counts[shown].sum(axis=1)
    shares = np.divide(cells, sums[:, None], out=np.full(cells.shape, math.nan), where=sums[:, None] > 0)
    rows = [f"{short_name(classes[i])} ({count:,})" for i, count in zip(shown, sums.tolist(), strict=True)]
    if len(shown) < total:
        title = f"The {len(shown)} worst of {total:,} classes, the worst first; {title} (all classes)"
    title = title[0].upper() + title[1:]
    save_figure(path, matrix_figure(shares, rows, [short_name(name) for name in columns], title, what=what))


def matrix_figure(
    shares: np.ndarray[Any, Any], rows: Sequence[str], columns: Sequence[str], title: str, *, what: str
) -> Figure:
    """Draws (rows, columns) shares, NaN for none, each row with its name and the number of `what` it is of."""
    from matplotlib.colors import PowerNorm

    numbered = len(rows) <= _NUMBERED
    cell = 0.52 if numbered else 0.19  # inches
    figure = new_figure(3.6 + cell * len(columns), 2.1 + cell * len(rows))
    axes = figure.subplots()
    axes.set_facecolor(GRID)
    # the square root of the share: a mistake of 5 % must be seen beside an accuracy of 95 %
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    size = 9 if numbered else 7.5
    axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 3 else 0, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(GRID)
    axes.set_xlabel("answer", color=INK, fontsize=9.5)
    axes.set_ylabel(f"true class ({what})", color=INK, fontsize=9.5)
    figure.suptitle(title, color=INK, fontsize=10, wrap=True)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04, aspect=30, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    for (y, x), share in np.ndenumerate(shares):
        if numbered and share > 0:
            ink = "#ffffff" if share > 0.35 else "#000000"
            axes.text(
                x, y, f"{100 * share:.0f}" if share >= 0.01 else "<1", ha="center", va="center", fontsize=9, color=ink
            )
    return figure


def short_name(name: str) -> str:
    """Returns a name as a picture can show it."""
    cut = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return cut.replace("$", r"\$")  # a "$" would start a formula
