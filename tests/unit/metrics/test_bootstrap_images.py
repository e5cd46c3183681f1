"""The bootstrap draws images: what was measured on one image is drawn together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap


def clustered(seed: int, images: int = 30) -> tuple[list[float], list[str]]:
    """Objects, 1 to 9 in an image, that differ far less within an image than between images; their true mean is 0."""
    rng = np.random.default_rng(seed)
    values, names = [], []
    for image in range(images):
        objects = int(rng.integers(1, 10))
        values += (rng.normal() + 0.1 * rng.normal(size=objects)).tolist()
        names += [f"image{image}"] * objects
    return values, names


def test_an_image_per_value_gives_the_plain_bootstrap_bit_for_bit() -> None:
    values = np.random.default_rng(3).random(57)
    rng = np.random.default_rng(0)
    means = values[rng.integers(57, size=(1000, 57))].mean(axis=1)
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    assert bootstrap_ci(values.tolist()) == (float(low), float(high))
    assert bootstrap_ci(values.tolist(), images=[f"b{9 - i}" for i in range(57)]) == (float(low), float(high))


def test_the_interval_of_objects_covers_as_often_as_it_says() -> None:
    """Of objects drawn one by one it covers far less than 95 %, as they are fewer than they seem."""
    tries = [clustered(seed) for seed in range(200)]
    whole = [bootstrap_ci(values, images=names, resamples=300) for values, names in tries]
    alone = [bootstrap_ci(values, resamples=300) for values, _ in tries]
    assert np.mean([low < 0 < high for low, high in whole]) > 0.88
    assert np.mean([low < 0 < high for low, high in alone]) < 0.7


def test_two_images_give_the_means_of_their_mixtures() -> None:
    low, high = bootstrap_ci([0.0, 1.0, 1.0, 1.0], images=["a", "b", "b", "b"])
    assert (low, high) == (0.0, 1.0)  # both times the same image
    middle = bootstrap_ci([0.0, 1.0, 1.0, 1.0], images=["a", "b", "b", "b"], level=1e-9)
    assert middle == pytest.approx((0.75, 0.75))  # one of each: the mean over the objects


def test_undefined_objects_and_images_are_left_out() -> None:
    nan = math.nan
    assert bootstrap_ci([0.2, nan, 0.6, nan], images=["a", "a", "b", "c"]) == bootstrap_ci([0.2, 0.6])
    assert all(map(math.isnan, bootstrap_ci([nan, nan], images=["a", "b"])))


def test_pairs_are_drawn_by_image_too() -> None:
    values, names = clustered(1)
    zeros = [0.0] * len(values)
    assert paired_bootstrap(zeros, values, images=names)[1:] == bootstrap_ci(values, images=names)
    low, high = paired_bootstrap(zeros, values, images=names)[1:]
    narrow_low, narrow_high = paired_bootstrap(zeros, values)[1:]
    assert high - low > 1.5 * (narrow_high - narrow_low)
