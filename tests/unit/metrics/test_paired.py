"""Tests of paired differences: exact small cases, what other tests of scipy say, and what can't be tested."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from samtune.metrics.bootstrap import paired_bootstrap
from samtune.metrics.paired import Effect, holm, over_images, over_seeds

NAN = math.nan


def images(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def effect(values: list[float], names: list[str] | None = None) -> Effect:
    return over_images([(1.0, values, names or images(len(values)))])


def test_few_images_are_tested_by_every_flip() -> None:
    values = [0.3, 0.1, 0.0, -0.05, 0.2]
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=5)]
    wanted = np.mean([total >= abs(sum(values)) - 1e-12 for total in sums])
    assert effect(values).p == pytest.approx(wanted)


def test_many_images_agree_with_the_t_test() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.1, 200)
    found = effect(values.tolist())
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, abs=0.004)
    assert found == effect(values.tolist())  # seeded
    assert (found.value, found.low, found.high) == pytest.approx(paired_bootstrap([0.0] * 200, values.tolist()))


def test_two_classifiers_agree_with_mcnemar() -> None:
    right = [1.0] * 5 + [-1.0] * 14 + [0.0] * 500
    assert effect(right).p == pytest.approx(stats.binomtest(5, 19).pvalue, abs=0.01)


def test_objects_of_an_image_flip_together() -> None:
    values, names = [0.1, 0.3, 0.2, 0.2, 0.1, 0.1], ["a", "a", "a", "b", "b", "c"]
    assert effect(values, names).p == pytest.approx(2 / 2**3)
    assert effect(values).p == pytest.approx(2 / 2**6)
    low, high = paired_bootstrap([0.0] * 6, values, images=names)[1:]
    assert (effect(values, names).low, effect(values, names).high) == (low, high)


def test_undefined_pairs_are_left_out() -> None:
    assert effect([0.1, NAN, 0.3]) == effect([0.1, 0.3])


def test_test_sets_are_weighted_and_drawn_apart() -> None:
    values = np.random.default_rng(0).normal(0.1, 1.0, 400).tolist()
    small, large = values[:40], values[40:]
    both = over_images([(0.5, small, images(40)), (0.5, large, images(360))])
    assert both.value == pytest.approx((np.mean(small) + np.mean(large)) / 2)
    half = 1.96 * math.sqrt(np.var(small) / 40 + np.var(large) / 360) / 2
    assert both.high - both.low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize(
    ("values", "why", "value"),
    [
        ([0.0, 0.0, 0.0], "equal on every image", 0.0),
        ([0.3], "one image", 0.3),
        ([NAN, NAN], "no image where both are defined", NAN),
        ([], "no image where both are defined", NAN),
    ],
)
def test_what_can_not_be_tested_over_images(values: list[float], why: str, value: float) -> None:
    found = effect(values)
    assert (found.p, found.why) == (None, why)
    assert found.value == pytest.approx(value, nan_ok=True)


def test_one_image_that_differs_tells_nothing() -> None:
    assert effect([0.0, 0.0, 0.4]).p == 1.0


def test_seeds_are_tested_by_t() -> None:
    found = over_seeds([0.1, 0.3, 0.2])
    test = stats.ttest_rel([0.5, 0.7, 0.6], [0.4, 0.4, 0.4])
    assert (found.value, found.p) == (pytest.approx(0.2), pytest.approx(test.pvalue))
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half))


@pytest.mark.parametrize(
    ("values", "why"),
    [([], "no seed in common"), ([0.1], "one seed"), ([0.7 - 0.5, 0.9 - 0.7], "the same in every seed")],
)
def test_what_can_not_be_tested_over_seeds(values: list[float], why: str) -> None:
    found = over_seeds(values)
    assert (found.p, found.why, math.isnan(found.low)) == (None, why, True)


def test_holm() -> None:
    # by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which is not below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.6, 0.7]) == [pytest.approx(0.03), None, 1.0, 1.0]
    assert holm([None]) == [None] and holm([]) == []
