"""What to try next where the best value of a grid is its lowest or highest: the best one may lie beyond."""

import math
from collections.abc import Sequence
from typing import Any

from samtune.sweep.plan import Cell, Point, end_of


def next_point(best: Cell, choice: float, tried: Sequence[tuple[Cell, float]]) -> Point | None:
    """Returns the best point moved beyond each end on which it lies, by the grid's own ratio; None if on none.

    A value that is no better than its neighbour in the grid is no reason to go on.

    Args:
        choice: of the best run, by which the runs are ranked; higher is better.
        tried: all runs of the (task, row), with theirs.
    """
    moved = dict(best.values)
    for key, value in best.values.items():
        alike = [(cell.values[key], found) for cell, found in tried if _alike(cell.values, best.values, key)]
        end = end_of(value, [cell.values[key] for cell, _ in tried])
        inner = sorted((other, found) for other, found in alike if isinstance(other, int | float) and other != value)
        if not end or not inner:
            continue
        neighbour, found = inner[0] if end < 0 else inner[-1]
        if found < choice and (beyond := _beyond(value, neighbour)) is not None:
            moved[key] = beyond
    return None if moved == best.values else moved


def _alike(values: Point, others: Point, key: str) -> bool:
    """Tells whether two points differ in one key at most."""
    return all(values[name] == others[name] for name in values if name != key)


def _beyond(value: Any, neighbour: Any) -> int | float | None:
    """Returns the next number of a geometric grid, whole in a grid of such, else as people write them."""
    if value <= 0 or neighbour <= 0:
        return None  # no ratio leads on
    exact = value * value / neighbour
    if isinstance(value, int) and isinstance(neighbour, int):
        whole = round(exact)
        return whole if whole > 0 and whole != value else None
    power = math.floor(math.log10(exact))
    written = min(
        (float(f"{first}e{power}") for first in (1, 2, 3, 4, 5, 6, 8, 10)), key=lambda w: abs(math.log(w / exact))
    )
    return written if (written - value) * (value - neighbour) > 0 else exact
