"""Where tiles lie, and how much each counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from samtune.tasks.tiles.grid import into_part, place_of, starts, weights
from samtune.types import Tiles

TILES = Tiles(64, 16, 64)


@pytest.mark.parametrize("length", [64, 65, 112, 113, 200, 1000])
def test_tiles_cover_a_side_and_share_what_was_asked_for(length: int) -> None:
    first = starts(length, TILES)
    assert first[0] == 0 and first[-1] == length - 64
    steps = [after - before for before, after in pairwise(first)]
    assert all(1 <= step <= 48 for step in steps) and max(steps, default=0) - min(steps, default=0) <= 1


def test_a_side_shorter_than_a_tile_has_one_of_its_own_length() -> None:
    assert starts(40, TILES) == [0]
    assert [share.tolist() for share in weights([0], 40, TILES)] == [[1.0] * 40]


@pytest.mark.parametrize("length", [64, 65, 150, 331])
def test_weights_add_up_to_one_and_fall_towards_the_edge(length: int) -> None:
    first, total = starts(length, TILES), np.zeros(length)
    shares = weights(first, length, TILES)
    for start, share in zip(first, shares, strict=True):
        assert (share > 0).all() and len(share) == 64
        total[start : start + 64] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    if length > 112:
        assert shares[0][0] == 1 and shares[0][-1] < 0.01  # alone at the border, nearly nothing at the seam
        assert (np.diff(shares[0][-16:]) < 0).all()


def test_a_box_is_shown_by_a_part_around_it_that_stays_in_the_picture() -> None:
    assert place_of((100, 90, 109, 99), (200, 300), TILES) == (slice(63, 127), slice(73, 137))
    assert place_of((0, 190, 9, 199), (200, 300), TILES) == (slice(136, 200), slice(0, 64))
    assert place_of((5, 5, 9, 9), (30, 40), TILES) == (slice(0, 30), slice(0, 40))  # smaller than a tile
    rows, columns = place_of((50, 20, 249, 39), (200, 300), TILES)  # longer than one
    assert columns == slice(25, 275) and rows == slice(0, 200)


def test_a_box_moves_with_its_part() -> None:
    moved = into_part(np.array([100.0, 90, 110, 100]), (slice(60, 124), slice(70, 134)), (128, 128))
    assert moved.tolist() == [60, 60, 80, 80]
