"""Is a difference of two models more than chance? Tests of paired differences, by scipy.

Over images: a sign-flip permutation test of the mean. If the two models are alike, each image could as well have had
their values the other way round, so the signs of its differences are flipped at random (all objects of an image
together). It asks nothing of the shape of the differences, which are bounded, skewed and often 0, and it is about the
same mean as the interval, which a test of ranks is not. Over seeds: Student's t, as there are few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from samtune.metrics.bootstrap import FloatArray, by_image, interval, resampled_means

FLIPS = 9999  # at random; where there are no more in all, each is taken once
RESAMPLES = 1000
_CHUNK = 4_000_000  # flips drawn at once: 32 MB, whatever the size of the test set
_NOTHING = 1e-12  # differences that differ by less are equal: values are in [0, 100] and rounded


@dataclass(frozen=True)
class Effect:
    """A mean difference with its 95 % interval and the p-value of no difference.

    Attributes:
        value: NaN where there is none, as `low` and `high`.
        p: None where no test can be computed; `why` says why then.
    """

    value: float
    low: float
    high: float
    p: float | None
    why: str = ""


Part = tuple[float, Sequence[float], Sequence[str]]
"""A test set: its weight, the differences on it, and of each difference the name of its image."""


def over_images(parts: Sequence[Part]) -> Effect:
    """Returns the weighted sum of the mean differences of test sets, each of which is drawn for itself.

    The interval is that of the bootstrap (1000 resamples, seed 0), the p-value that of the sign-flip test (9999 flips,
    seed 0); one test set of weight 1 has the interval of `paired_bootstrap`.
    """
    rng = np.random.default_rng(0)
    sums_counts = [(weight, *by_image(values, images)) for weight, values, images in parts]
    if any(not sums.size for _, sums, _ in sums_counts):
        return Effect(math.nan, math.nan, math.nan, None, "no image where both are defined")
    drawn = [weight * resampled_means(sums, counts, RESAMPLES, rng) for weight, sums, counts in sums_counts]
    shares = np.concatenate([weight * sums / counts.sum() for weight, sums, counts in sums_counts])
    low, high = interval(np.sum(drawn, axis=0))
    value = float(shares.sum())
    if len(shares) < 2:
        return Effect(value, low, high, None, "one image")
    if not np.any(np.abs(shares) > _NOTHING):
        return Effect(value, low, high, None, "equal on every image")
    return Effect(value, low, high, _sign_flip(shares))


def over_seeds(differences: Sequence[float]) -> Effect:
    """Returns mean, 95 % interval and p-value by Student's t of one difference per seed; NaN is left out."""
    defined = [value for value in differences if not math.isnan(value)]
    if not defined:
        return Effect(math.nan, math.nan, math.nan, None, "no seed in common")
    mean = float(np.mean(defined))
    if len(defined) < 2:
        return Effect(mean, math.nan, math.nan, None, "one seed")
    if np.ptp(defined) < _NOTHING:
        return Effect(mean, math.nan, math.nan, None, "the same in every seed")
    test = stats.ttest_1samp(defined, 0.0)
    low, high = test.confidence_interval(0.95)
    return Effect(mean, float(low), float(high), float(test.pvalue))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected for their number (Holm 1979); None is no test and does not count."""
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = corrected[place] = max(largest, min(1.0, (len(known) - rank) * value))
    return corrected


def _sign_flip(shares: FloatArray) -> float:
    """Returns the two-sided p-value of the sum of `shares`, one per image."""
    moved = shares[np.abs(shares) > _NOTHING]  # flipping a 0 changes nothing
    if len(moved) == 1:
        return 1.0  # either sign is as far from 0
    if 2 ** len(moved) <= FLIPS:
        exact = stats.permutation_test((moved,), _sum, permutation_type="samples", vectorized=True, n_resamples=FLIPS)
        return float(exact.pvalue)
    rng = np.random.default_rng(0)

    def flipped(size: tuple[int, ...]) -> FloatArray:
        return moved * (1 - 2 * rng.integers(2, size=size, dtype=np.int8))

    batch = max(1, _CHUNK // len(moved))
    test = stats.monte_carlo_test(moved, flipped, _sum, vectorized=True, n_resamples=FLIPS, batch=batch)
    return float(test.pvalue)


def _sum(values: FloatArray, axis: int) -> Any:
    return values.sum(axis=axis)
