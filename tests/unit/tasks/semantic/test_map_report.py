"""One confusion matrix over the set: its numbers against scikit-learn's, and rows that give them back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from samtune.errors import DataError
from samtune.tasks.semantic.report import MAP_DEFINITIONS, MapReport, MapRow
from samtune.types import IGNORE, ClassMap

CLASSES = ("sky", "road", "car", "dog")
RNG = np.random.default_rng(0)
TRUTHS = [RNG.integers(0, 3, (20, 30)).astype(np.uint8) for _ in range(6)]
FOUND = [np.where(RNG.random((20, 30)) < 0.6, t, RNG.integers(0, 4, (20, 30))).astype(np.uint8) for t in TRUTHS]


def report(found: list[ClassMap] = FOUND, truths: list[ClassMap] = TRUTHS) -> MapReport:
    rows = tuple(MapRow.of(f"i{n}", f, t) for n, (f, t) in enumerate(zip(found, truths, strict=True)))
    return MapReport(rows, "test", CLASSES, MAP_DEFINITIONS)


def test_the_numbers_are_those_of_one_matrix_over_the_set() -> None:
    measured, truth, found = report(), np.stack(TRUTHS).ravel(), np.stack(FOUND).ravel()
    np.testing.assert_array_equal(measured.confusion(), confusion_matrix(truth, found, labels=range(4)))
    there = [0, 1, 2]  # no dog in the truth: no mean counts it
    assert measured.values["mIoU"] == pytest.approx(jaccard_score(truth, found, labels=there, average="macro"))
    assert measured.values["mDice"] == pytest.approx(f1_score(truth, found, labels=there, average="macro"))
    assert measured.metrics["pixel_accuracy"] == pytest.approx((truth == found).mean())
    assert measured.metrics["absent_classes"] == 1
    low, high = measured.ci95["mIoU"]
    assert low < measured.values["mIoU"] < high


def test_ignored_pixels_count_nowhere() -> None:
    truth = TRUTHS[0].copy()
    truth[:10] = IGNORE
    one, other = FOUND[0], FOUND[0].copy()
    other[:10] = 3
    assert MapRow.of("x", one, truth) == MapRow.of("x", other, truth)
    assert MapRow.of("x", one, truth).pixels == 10 * 30
    empty = MapRow.of("x", one, np.full_like(truth, IGNORE))
    assert empty.cells == () and math.isnan(empty.iou) and math.isnan(empty.accuracy)


def test_a_saved_report_comes_back(tmp_path: Path) -> None:
    report().save(tmp_path)
    assert MapReport.load(tmp_path) == report()
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["per_class"]["dog"]["iou"] == 0 and content["per_class"]["dog"]["recall"] is None
    assert np.sum(content["confusion"]) == 6 * 20 * 30
    (tmp_path / "per_image.csv").write_text("name,confusion\nx,0-1\n")
    with pytest.raises(DataError, match="several classes"):
        MapReport.load(tmp_path)


def test_a_gain_is_paired() -> None:
    better = [np.where(RNG.random(t.shape) < 0.5, t, f) for t, f in zip(TRUTHS, FOUND, strict=True)]
    gain, low, high = report(better).gain(report())["mIoU"]
    assert 0 < low <= gain <= high
    assert report().gain(report())["mIoU"] == (0, 0, 0)
    fewer = MapReport(report().rows[:5], "test", CLASSES, {})
    with pytest.raises(DataError, match="different images"):
        report().gain(fewer)
    with pytest.raises(DataError, match="different classes"):
        report().gain(MapReport(report().rows, "test", ("a", "b", "c", "d"), {}))


def test_an_image_has_its_own_means() -> None:
    row = MapRow("x", ((0, 0, 6), (0, 1, 2), (1, 1, 2)))
    assert row.iou == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert row.dice == pytest.approx((12 / 14 + 4 / 6) / 2)
    assert row.accuracy == pytest.approx(0.8)
    assert row.iou_of(0) == pytest.approx(8 / 10 / 2) and row.iou_of(3) == 0  # one class everywhere
