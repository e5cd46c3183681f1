"""How far a mean over images can be trusted: percentile bootstrap intervals (Efron 1979), seeded.

The images are drawn with replacement, as often as there are images; the interval holds the middle `level` of
the means. It speaks about the choice of test images, not about the luck of the training run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from samtune.errors import DataError

_CHUNK = 4_000_000  # indices drawn at once: 32 MB, whatever the size of the test set


def bootstrap_ci(
    values: Sequence[float], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Returns the bootstrap interval (low, high) of the mean of `values`.

    Args:
        values: one number per image; NaN (undefined) is left out.
        resamples: number of drawn means.
        seed: of the drawing; the same seed and values give the same interval.
        level: share of the means inside the interval, in (0, 1).

    Returns:
        (low, high); (NaN, NaN) when every value is NaN or there is none.
    """
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if defined.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // defined.size)
    means = [
        defined[rng.integers(defined.size, size=(min(rows, resamples - start), defined.size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Compares two models on the same images: does `b` beat `a` by more than the choice of images explains?

    Args:
        a: one number per image of the first model.
        b: one number per image of the second, in the same order; pairs with a NaN are left out.
        resamples, seed, level: as in `bootstrap_ci`.

    Returns:
        (mean of b - a, low, high). An interval without 0 speaks for a real difference.

    Raises:
        DataError: `a` and `b` differ in length.
    """
    if len(a) != len(b):
        raise DataError(f"paired values must come from the same images, got {len(a)} and {len(b)} values.")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    mean = float(differences.mean()) if differences.size else math.nan
    return mean, *bootstrap_ci(differences.tolist(), resamples=resamples, seed=seed, level=level)
