from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from samtune.errors import DataError
from samtune.metrics.bootstrap import bootstrap_ci
from samtune.tasks.classes.evaluate import class_rows
from samtune.tasks.classes.report import CLASS_DEFINITIONS, ClassReport, ClassRow
from samtune.tasks.masks.report import Report, Row


def make_answers(*, images: int = 400, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that favour the true class, and unbalanced labels with every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator).square() % classes
    labels[:classes] = torch.arange(classes)
    logits = torch.randn(images, classes, generator=generator)
    return logits + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


def make_report(logits: Tensor, labels: Tensor) -> ClassReport:
    rows = class_rows([f"{i}.jpg" for i in range(len(labels))], logits, labels)
    return ClassReport(tuple(rows), "test", tuple(f"c{i}" for i in range(logits.shape[1])), dict(CLASS_DEFINITIONS))


def row(name: str, label: int, predicted: int, rank: int) -> ClassRow:
    return ClassRow(name, label, predicted, rank, 0.5 if rank == 0 else 0.25, 0.5)


@pytest.mark.parametrize("classes", [6, 12])
def test_accuracies_are_those_of_torchmetrics(classes: int) -> None:
    logits, labels = make_answers(classes=classes)
    report = make_report(logits, labels)
    expected = {
        "top1": MulticlassAccuracy(classes, average="micro"),
        "top5": MulticlassAccuracy(classes, top_k=5, average="micro"),
        "mean_per_class": MulticlassAccuracy(classes, average="macro"),
    }
    assert list(report.values) == list(expected)
    for name, metric in expected.items():
        assert report.values[name] == pytest.approx(float(metric(logits, labels)), abs=1e-6)
    assert report.choice == report.values["top1"]
    confusion = MulticlassConfusionMatrix(classes)(logits, labels)
    np.testing.assert_array_equal(report.confusion(), confusion.numpy())
    recalls = MulticlassAccuracy(classes, average="none")(logits, labels)
    np.testing.assert_allclose(report.per_class(), recalls.numpy(), atol=1e-6)


def test_further_numbers_are_those_of_torch() -> None:
    logits, labels = make_answers()
    metrics = make_report(logits, labels).metrics
    assert metrics["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    ece = MulticlassCalibrationError(12, n_bins=15, norm="l1")(logits.softmax(dim=1), labels)
    assert metrics["ece"] == pytest.approx(float(ece), abs=1e-6)
    assert metrics["n_classes"] == 12 and "absent_classes" not in metrics
    assert metrics["worst_class"] == pytest.approx(make_report(logits, labels).per_class().min())
    assert metrics.keys() <= CLASS_DEFINITIONS.keys()


def test_five_classes_have_no_top5() -> None:
    report = make_report(*make_answers(classes=5))
    assert list(report.values) == list(report.ci95) == ["top1", "mean_per_class"]
    assert "top5" not in report.to_json() and "top5" not in report.metrics


def test_classes_without_images_are_left_out() -> None:
    report = ClassReport((row("a", 0, 0, 0), row("b", 0, 2, 1), row("c", 1, 1, 0)), "test", ("x", "y", "z"), {})
    np.testing.assert_array_equal(report.per_class(), [0.5, 1.0, math.nan])
    assert report.values == {"top1": pytest.approx(2 / 3), "mean_per_class": 0.75}
    assert report.metrics["absent_classes"] == 1 and report.metrics["worst_class"] == 0.5
    np.testing.assert_array_equal(report.confusion(), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_a_probability_of_zero_is_finite() -> None:
    report = ClassReport((ClassRow("a", 0, 1, 1, 0.0, 1.0),), "test", ("x", "y"), {})
    assert report.metrics["nll"] == pytest.approx(-math.log(1.1754944e-38)) and report.metrics["ece"] == 1.0


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    report = make_report(*make_answers(images=300))
    right = np.array([r.rank == 0 for r in report.rows])
    labels = np.array([r.label for r in report.rows])
    assert report.ci95["top1"] == pytest.approx(bootstrap_ci(right.astype(float).tolist()), abs=0.01)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(1000):
        drawn = rng.integers(300, size=300)
        present = np.unique(labels[drawn])
        means.append(np.mean([right[drawn][labels[drawn] == label].mean() for label in present]))
    assert report.ci95["mean_per_class"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)
    assert report.ci95 == replace(report).ci95


def test_a_report_without_rows_is_undefined() -> None:
    report = ClassReport((), "test", tuple("abcdef"), {})
    assert all(math.isnan(value) for value in report.values.values())
    assert report.to_json()["top1"] is None and report.to_json()["ci95"]["top5"] == [None, None]


def test_the_report_survives_the_disk(tmp_path: Path) -> None:
    report = make_report(*make_answers())
    report.save(tmp_path / "run")
    assert ClassReport.load(tmp_path / "run") == report
    with (tmp_path / "run" / "per_image.csv").open() as file:
        assert ",".join(next(csv.reader(file))) == "name,label,predicted,rank,probability,confidence"


def test_metrics_json_has_the_promised_form(tmp_path: Path) -> None:
    logits, labels = make_answers()
    report, before = make_report(logits, labels), make_report(logits.flip(0), labels)
    report.save(tmp_path, before=before, trainable={"head": 10, "total": 10, "percent": 1.0})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert list(content) == [
        "task", "split", "n_images", "top1", "top5", "mean_per_class", "ci95", "definition", "metrics", "before",
        "gain", "trivial", "trainable", "classes", "advice",
    ]  # fmt: skip
    assert content["n_images"] == 400 and content["classes"][:2] == ["c0", "c1"]
    assert content["before"] == before.values
    gain, low, high = content["gain"]["top1"]
    assert gain == pytest.approx(report.choice - before.choice) and 0 < low < gain < high
    assert content["trainable"]["percent"] == 1.0
    plain = report.to_json()
    assert plain["before"] is plain["gain"] is plain["trainable"] is None


@pytest.mark.parametrize("damage", ["missing", "no json", "no csv", "wrong column", "segmentation"])
def test_unreadable_reports_are_errors(tmp_path: Path, damage: str) -> None:
    make_report(*make_answers()).save(tmp_path)
    if damage == "no json":
        (tmp_path / "metrics.json").write_text("{")
    if damage == "no csv":
        (tmp_path / "per_image.csv").unlink()
    if damage == "wrong column":
        (tmp_path / "per_image.csv").write_text("name,label\na,0\n")
    if damage == "segmentation":
        (tmp_path / "metrics.json").write_text('{"split": "test", "mDice": 0.5, "definition": {}}')
    folder = tmp_path / "absent" if damage == "missing" else tmp_path
    with pytest.raises(
        DataError, match=r"does not hold metrics\.json and per_image\.csv of an? (classification|evaluation)"
    ):
        ClassReport.load(folder)


def test_compare_pairs_by_name() -> None:
    a = ClassReport((row("x", 0, 1, 1), row("y", 1, 1, 0)), "test", ("p", "q"), {})
    b = ClassReport((row("y", 1, 1, 0), row("x", 0, 0, 0)), "test", ("p", "q"), {})
    mean, low, high = b.gain(a)["top1"]
    assert mean == 0.5 and low == 0.0 and high == 1.0
    with pytest.raises(DataError, match=r"1 are in one report only, such as 'y'.*the same split"):
        replace(b, rows=b.rows[1:]).gain(a)
    with pytest.raises(DataError, match=r"different classes: 2 \(p, \.\.\.\) and 3 \(p, \.\.\.\).*the same data set"):
        replace(b, classes=("p", "q", "r")).gain(a)


def test_a_report_of_masks_has_values_and_a_choice_too() -> None:
    report = Report((Row("a", 0.8, 2 / 3, 0.9, 0.7, 100, 90),), "test", {})
    assert report.values == {"mDice": 0.8, "mIoU": 2 / 3} and report.choice == 0.8
    assert report.ci95.keys() == report.values.keys()
