from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samtune.metrics.overlap import (
    classmean_dice,
    classmean_iou,
    dice,
    gps_released_dice,
    gps_released_iou,
    iou,
    mae,
    pooled_dice,
    pooled_iou,
    precision,
    recall,
)
from samtune.metrics.table import METRICS, POOLED_METRICS

EMPTY = np.zeros((4, 5), dtype=bool)
FULL = np.ones((4, 5), dtype=bool)
HALF = np.zeros((4, 5), dtype=bool)
HALF[:2] = True

mask_pairs = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def test_hand_computed_values() -> None:
    prediction, truth = np.zeros((2, 4), dtype=bool), np.zeros((2, 4), dtype=bool)
    prediction[0, :3] = True  # TP 2, FP 1, FN 2, TN 3
    truth[0, 1:], truth[1, 0] = True, True
    assert dice(prediction, truth) == 4 / 7
    assert iou(prediction, truth) == 2 / 5
    assert precision(prediction, truth) == 2 / 3
    assert recall(prediction, truth) == 2 / 4
    assert mae(prediction, truth) == 3 / 8
    assert classmean_dice(prediction, truth) == pytest.approx((4 / 7 + 6 / 9) / 2)
    assert classmean_iou(prediction, truth) == pytest.approx((2 / 5 + 3 / 6) / 2)


@pytest.mark.parametrize("metric", [dice, iou, precision, recall])
def test_empty_masks_follow_the_rule(metric) -> None:
    assert metric(EMPTY, EMPTY) == 1.0
    assert metric(EMPTY, HALF) == 0.0
    assert metric(HALF, EMPTY) == 0.0
    assert metric(HALF, HALF) == 1.0


@settings(max_examples=200, deadline=None)
@given(mask_pairs)
def test_dice_is_two_iou_over_one_plus_iou(pair) -> None:
    prediction, truth = pair
    overlap = iou(prediction, truth)
    assert dice(prediction, truth) == pytest.approx(2 * overlap / (1 + overlap), abs=1e-12)
    assert 0 <= overlap <= dice(prediction, truth) <= 1
    assert overlap == iou(truth, prediction)
    assert precision(prediction, truth) == recall(truth, prediction)


@settings(max_examples=50, deadline=None)
@given(mask_pairs)
def test_agrees_with_monai(pair) -> None:
    from monai.metrics import DiceMetric, MeanIoU

    prediction, truth = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    for metric, oracle in (
        (dice, DiceMetric(include_background=True, ignore_empty=False)),
        (iou, MeanIoU(include_background=True, ignore_empty=False)),
    ):
        oracle(prediction, truth)
        assert metric(*pair) == pytest.approx(float(oracle.aggregate()), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(mask_pairs)
def test_agrees_with_torchmetrics(pair) -> None:
    from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

    prediction, truth = (torch.from_numpy(mask).long() for mask in pair)
    assert dice(*pair) == pytest.approx(float(binary_f1_score(prediction, truth, zero_division=1)), abs=1e-6)
    if pair[0].any() or pair[1].any():  # torchmetrics says 0 for the IoU of two empty masks
        assert iou(*pair) == pytest.approx(float(binary_jaccard_index(prediction, truth)), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(mask_pairs)
def test_pooled_metrics_of_one_image_are_its_metrics(pair) -> None:
    prediction, truth = pair
    counts = int((prediction & truth).sum()), int(prediction.sum()), int(truth.sum())
    assert pooled_dice(*counts) == dice(prediction, truth)
    assert pooled_iou(*counts) == iou(prediction, truth)


def test_gps_released_calls_foreground_everywhere_perfect() -> None:
    everywhere = int((FULL & HALF).sum()), int(FULL.sum()), int(HALF.sum())
    assert gps_released_dice(*everywhere) == gps_released_iou(*everywhere) == 1.0
    assert pooled_dice(*everywhere) < 0.7
    assert gps_released_iou(5, 99, 10) == 0.5  # the recall
    assert gps_released_dice(5, 99, 10) == pytest.approx(10 / 15)


def test_an_empty_prediction_looks_good_to_the_class_mean_only() -> None:
    truth = np.zeros((20, 20), dtype=bool)
    truth[0, 0] = True
    empty = np.zeros_like(truth)
    assert dice(empty, truth) == 0.0
    assert classmean_dice(empty, truth) > 0.49


def test_tables_hold_functions_of_their_kind() -> None:
    for metric in METRICS.values():
        assert isinstance(metric(HALF, FULL), float)
    for pooled in POOLED_METRICS.values():
        assert pooled(1, 2, 3) <= 1 and pooled(0, 0, 0) == 1.0


@pytest.mark.parametrize("metric", [dice, mae])
def test_wrong_masks_are_errors(metric) -> None:
    with pytest.raises(ValueError, match=r"prediction is float64 with shape \(4, 5\).*threshold it first"):
        metric(HALF.astype(float), HALF)
    with pytest.raises(ValueError, match=r"truth is bool with shape \(1, 4, 5\)"):
        metric(HALF, HALF[None])
    with pytest.raises(ValueError, match=r"prediction has \(4, 5\) pixels and the truth \(3, 5\)"):
        metric(HALF, HALF[:3])
