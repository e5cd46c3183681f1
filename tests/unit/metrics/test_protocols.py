from __future__ import annotations

import numpy as np
import pytest

from samtune.metrics.protocols import pranet_curves, pranet_dice, probability_mae


def direct(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The protocol as it is written: 256 masks, one per threshold."""
    low, high = probability.min(), probability.max()
    stretched = (probability - low) / (high - low)
    curves = []
    for k in range(256):
        mask = stretched >= k / 255 - 1e-7
        overlap = (mask & truth).sum()
        curves.append((2 * overlap / (mask.sum() + truth.sum()), overlap / (mask | truth).sum()))
    return np.array(curves).T


def example(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((17, 13)) > 0.6
    return np.clip(truth * 0.4 + rng.random((17, 13)) * 0.5, 0, 1).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(3))
def test_histograms_equal_256_masks(seed: int) -> None:
    probability, truth = example(seed)
    np.testing.assert_allclose(
        pranet_curves(probability.astype(float), truth), direct(probability.astype(float), truth)
    )


def test_eight_bit_maps_keep_their_levels() -> None:
    levels = np.arange(256).reshape(16, 16)
    truth = levels >= 100
    dice, iou = pranet_curves((levels / 255).astype(np.float32), truth)
    assert dice[100] == iou[100] == 1.0
    assert dice[99] == pytest.approx(2 * 156 / (157 + 156))
    assert dice[255] == pytest.approx(2 / (1 + 156))


def test_stretching_ignores_scale_and_offset() -> None:
    probability, truth = example(0)
    squeezed = 0.3 + 0.2 * probability.astype(float)
    assert pranet_dice(squeezed, truth) == pytest.approx(pranet_dice(probability, truth), abs=1e-3)
    perfect = np.where(truth, 0.7, 0.2)
    assert pranet_dice(perfect, truth) > 0.99
    assert probability_mae(perfect, truth) == pytest.approx(0.0)


def test_constant_maps_and_empty_truths() -> None:
    truth = np.ones((4, 4), dtype=bool)
    dice, _ = pranet_curves(np.full((4, 4), 0.5), truth)
    assert dice[:128].tolist() == [1.0] * 128 and dice[128:].tolist() == [0.0] * 128
    assert pranet_dice(np.zeros((4, 4)), ~truth) == 0.0
    assert probability_mae(np.full((4, 4), 0.25), truth) == 0.75
