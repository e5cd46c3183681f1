"""Objects that are found part by part are there once, and whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from samtune.metrics.instances import overlaps
from samtune.tasks.instances.separate import _target, separate
from samtune.tasks.tiles import join
from samtune.tasks.tiles.grid import starts
from samtune.tasks.tiles.join import collect, join_strips
from samtune.types import Instances, Tiles

SHAPE = (1300, 120)


@pytest.fixture(autouse=True)
def strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rows in a strip as there can be: 384, of which 128 are shared."""
    monkeypatch.setattr(join, "MOST_PIXELS", 1)


def ellipses(*each: tuple[float, float, float, float], shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Draws (row, column, half height, half width); what was drawn stays."""
    labels = np.zeros(shape, dtype=np.int32)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for number, (row, column, high, wide) in enumerate(each, start=1):
        labels[(((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1) & (labels == 0)] = number
    return labels


def bands(truth: np.ndarray, height: int = 48) -> Iterator[tuple[slice, np.ndarray]]:
    """The maps that a perfect model would give of objects."""
    maps = _target(truth)
    for start in range(0, len(truth), height):
        rows = slice(start, min(start + height, len(truth)))
        yield rows, maps[:, rows]


def ious(found: Instances, truth: np.ndarray) -> np.ndarray:
    """The best IoU of each true object."""
    shared = overlaps(found.labels, truth)
    best = np.zeros(len(shared.truth_px))
    np.maximum.at(best, shared.truth, shared.iou)
    return best


def test_objects_over_every_border_are_one_and_whole() -> None:
    truth = ellipses(*((row, 30 + 50 * (row // 40 % 2), 15, 12) for row in range(20, 1290, 40)))
    found = join_strips(bands(truth), SHAPE, separate)
    assert len(found) == truth.max()
    assert ious(found, truth).min() > 0.9
    assert sorted(np.unique(found.labels)) == list(range(len(found) + 1))
    assert found.scores.dtype == np.float32 and (found.scores > 0.8).all()


def test_an_object_longer_than_strips_is_one_and_a_neighbour_that_touches_it_another() -> None:
    truth = ellipses((640, 40, 600, 25), (640, 75, 600, 10), (640, 105, 20, 10))
    found = join_strips(bands(truth), SHAPE, separate)
    assert ious(found, truth)[2] > 0.9
    alone = ellipses((640, 60, 600, 25))
    assert len(join_strips(bands(alone), SHAPE, separate)) == 1


def test_neighbours_that_touch_across_a_border_stay_two() -> None:
    border = 384 - 64  # the middle of what the first two strips share
    truth = ellipses((border - 20, 60, 20, 20), (border + 21, 60, 20, 20))
    found = join_strips(bands(truth), SHAPE, separate)
    assert len(found) == 2 and ious(found, truth).min() > 0.9


def test_one_strip_is_what_is_found_without(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = ellipses(*((row, 30 + 50 * (row // 40 % 2), 15, 12) for row in range(20, 1290, 40)))
    monkeypatch.setattr(join, "MOST_PIXELS", truth.size)
    whole, found = separate(_target(truth)), join_strips(bands(truth), SHAPE, separate)
    np.testing.assert_array_equal(found.labels, whole.labels)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-6)


def test_three_thousand_objects_and_none() -> None:
    shape = (1200, 250)
    truth = np.zeros(shape, dtype=np.int32)
    disc = ellipses((4, 4, 3.6, 3.6), shape=(9, 9)) > 0
    for number in range(3000):
        row, column = 10 * (number // 25), 10 * (number % 25)
        truth[row : row + 9, column : column + 9][disc] = number + 1
    found = join_strips(bands(truth), shape, separate)
    assert len(found) == 3000 and ious(found, truth).min() > 0.5
    nothing = join_strips(bands(np.zeros(shape, dtype=np.int32)), shape, separate)
    assert len(nothing) == 0 and not nothing.labels.any() and nothing.scores.shape == (0,)


def test_an_object_in_two_tiles_belongs_to_the_one_whose_middle_is_nearer() -> None:
    tiles, shape = Tiles(64, 32, 64), (64, 160)
    truth = ellipses((30, 40, 8, 8), (30, 80, 8, 8), (30, 120, 8, 8), shape=shape)
    first = starts(160, tiles)
    parts = []
    for start in first:
        labels = truth[:, start : start + 64]
        there = [number for number in np.unique(labels) if number]
        numbered = np.searchsorted([0, *there], labels) * (labels > 0)
        scores = np.full(len(there), 0.5, dtype=np.float32)
        parts.append(((slice(0, 64), slice(start, start + 64)), Instances(numbered.astype(np.int32), scores)))
    found = collect(parts, shape, tiles)
    assert len(found) == 3 and (ious(found, truth) == 1).all() and (found.scores == 0.5).all()
