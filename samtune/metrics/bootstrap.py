"""How far a mean over images can be trusted: percentile bootstrap intervals (Efron 1979), seeded.

The images are drawn with replacement, as often as there are images, each with all its values: objects of one image are
not independent. The interval holds the middle `level` of the means. It speaks about the choice of test images, not
about the luck of the training run.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samtune.errors import DataError

_CHUNK = 4_000_000  # indices drawn at once: 32 MB, whatever the size of the test set

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def bootstrap_ci(
    values: Sequence[float],
    *,
    images: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the bootstrap interval (low, high) of the mean of `values`; (NaN, NaN) where none is defined.

    Args:
        values: one number per image or object; NaN (undefined) is left out.
        images: of each value its image, by name; None: each has its own.
        seed: the same seed and values give the same interval.
        level: share of the means inside the interval, in (0, 1).
    """
    return interval(resampled_means(*by_image(values, images), resamples, np.random.default_rng(seed)), level)


def by_image(values: Sequence[float], images: Sequence[str] | None) -> tuple[FloatArray, FloatArray]:
    """Returns (sums, counts), each (images,), of the values of every image that has one; NaN is no value."""
    names = range(len(values)) if images is None else images
    pairs = [(name, value) for name, value in zip(names, values, strict=True) if not math.isnan(value)]
    places = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in pairs))}
    place = np.array([places[name] for name, _ in pairs], dtype=np.int64)
    sums, counts = np.bincount(place, weights=[value for _, value in pairs]), np.bincount(place)
    return sums.astype(np.float64), counts.astype(np.float64)


def resampled_means(sums: FloatArray, counts: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Returns (resamples,) means over images drawn with replacement; NaN where there is none; see `by_image`."""
    if not sums.size:
        return np.full(resamples, math.nan)
    rows, means = max(1, _CHUNK // sums.size), []
    for start in range(0, resamples, rows):
        drawn = rng.integers(sums.size, size=(min(rows, resamples - start), sums.size))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def interval(means: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Returns (low, high), between which the middle `level` of the means lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, images: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Compares two models on the same images: does `b` beat `a` by more than the choice of images explains?

    Args:
        a: one number per image or object of the first model.
        b: one number of the second for each of them, in the same order; pairs with a NaN are left out.

    Returns:
        (mean of b - a, low, high). An interval without 0 speaks for a real difference.

    Raises:
        DataError: `a` and `b` differ in length.
    """
    if len(a) != len(b):
        raise DataError(f"paired values must come from the same images, got {len(a)} and {len(b)} values.")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    defined = differences[~np.isnan(differences)]
    mean = float(defined.mean()) if defined.size else math.nan
    return mean, *bootstrap_ci(differences.tolist(), images=images)
