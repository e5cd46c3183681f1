from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from samtune.metrics.boundary import TOLERANCE_PX, hd95, surface_dice


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((40, 50), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = np.zeros((40, 50), dtype=bool)


def edge(mask: np.ndarray) -> np.ndarray:
    return mask & ~binary_erosion(mask)


def test_nothing_is_warned_of_that_is_not_the_users() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:9, 5:11] = True
    hd95(mask, mask), surface_dice(mask, mask)  # imports what warns of other things
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hd95(mask, mask) == 0 and surface_dice(mask, mask) == 1


def test_equal_masks() -> None:
    assert hd95(square(5, 5), square(5, 5)) == 0.0
    assert surface_dice(square(5, 5), square(5, 5)) == 1.0


def test_a_shift_is_its_distance() -> None:
    assert hd95(square(5, 5), square(5, 12)) == pytest.approx(7.0)
    assert surface_dice(square(5, 5), square(5, 5 + int(TOLERANCE_PX))) == 1.0
    assert 0 < surface_dice(square(5, 5), square(5, 12)) < 1
    assert surface_dice(square(0, 0), square(25, 30)) == 0.0


def test_agrees_with_distance_transforms() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = square(*rng.integers(0, 25, size=2), side=int(rng.integers(4, 14)))
        b = square(*rng.integers(0, 25, size=2), side=int(rng.integers(4, 14)))
        there = distance_transform_edt(~edge(b))[edge(a)]
        back = distance_transform_edt(~edge(a))[edge(b)]
        assert hd95(a, b) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)
        near = (there <= TOLERANCE_PX).sum() + (back <= TOLERANCE_PX).sum()
        assert surface_dice(a, b) == pytest.approx(near / (there.size + back.size), abs=1e-6)


def test_undefined_cases() -> None:
    assert math.isnan(hd95(EMPTY, EMPTY))
    assert math.isnan(hd95(square(1, 1), EMPTY))
    assert math.isnan(hd95(EMPTY, square(1, 1)))
    assert math.isnan(surface_dice(EMPTY, EMPTY))
    assert surface_dice(square(1, 1), EMPTY) == surface_dice(EMPTY, square(1, 1)) == 0.0
