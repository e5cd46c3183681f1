from __future__ import annotations

import math

import numpy as np
import pytest

from samtune.errors import DataError
from samtune.metrics import bootstrap
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap


def test_interval_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, size=400).tolist()
    low, high = bootstrap_ci(values)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert low == pytest.approx(np.mean(values) - half, abs=0.002)
    assert high == pytest.approx(np.mean(values) + half, abs=0.002)


def test_seed_level_and_resamples() -> None:
    values = [0.1, 0.5, 0.7, 0.9, 1.0]
    assert bootstrap_ci(values) == bootstrap_ci(values)
    assert bootstrap_ci(values, seed=1) != bootstrap_ci(values)
    low, high = bootstrap_ci(values)
    narrow_low, narrow_high = bootstrap_ci(values, level=0.5)
    assert low < narrow_low < narrow_high < high
    assert bootstrap_ci(values, resamples=1)[0] == bootstrap_ci(values, resamples=1)[1]


def test_nan_is_left_out() -> None:
    assert bootstrap_ci([0.2, math.nan, 0.6]) == bootstrap_ci([0.2, 0.6])
    assert all(map(math.isnan, bootstrap_ci([math.nan])))
    assert all(map(math.isnan, bootstrap_ci([])))
    assert bootstrap_ci([0.5]) == (0.5, 0.5)


def test_chunks_cover_all_resamples(monkeypatch) -> None:
    values = np.random.default_rng(0).random(50).tolist()
    whole = bootstrap_ci(values)
    monkeypatch.setattr(bootstrap, "_CHUNK", 170)  # 3 resamples at once; 1000 is no multiple of 3
    assert bootstrap_ci(values) == whole


def test_paired_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(100)
    b = a + 0.02 + 0.01 * rng.normal(size=100)
    mean, low, high = paired_bootstrap(a.tolist(), b.tolist())
    assert mean == pytest.approx((b - a).mean())
    assert 0 < low < mean < high
    assert bootstrap_ci(a.tolist())[1] > bootstrap_ci(b.tolist())[0]


def test_paired_leaves_out_pairs_with_nan() -> None:
    assert paired_bootstrap([0.1, math.nan, 0.3], [0.2, 0.5, math.nan])[0] == pytest.approx(0.1)
    assert all(map(math.isnan, paired_bootstrap([math.nan], [0.5])))


def test_paired_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="got 2 and 1 values"):
        paired_bootstrap([0.1, 0.2], [0.1])
