"""The table of instances: what it holds, that it is read back, and that every number is explained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from object_maps import discs
from PIL import Image

from samtune.data.formats.annotations import Annotations
from samtune.data.formats.coco import write_coco
from samtune.data.formats.table import SEPARATE, WRITERS
from samtune.errors import DataError
from samtune.metrics.instances import match, numbers
from samtune.tasks.instances.layouts.splits import kind_of
from samtune.tasks.instances.objects import read_objects
from samtune.tasks.instances.outputs import annotated, colour_png, counts_csv, geojson, index_png
from samtune.tasks.instances.report import INSTANCE_DEFINITIONS, InstanceReport, InstanceRow
from samtune.tasks.probe.answers import _largest_error, spread
from samtune.types import Instances


def answer(*left_out: int, score: float = 0.75) -> Instances:
    labels = discs()
    labels[np.isin(labels, left_out)] = 0
    _, places = np.unique(labels, return_inverse=True)
    places = places.reshape(labels.shape).astype(np.int32)
    return Instances(places, np.linspace(score, 0.25, places.max()).astype(np.float32))


def row(name: str, found: Instances, box: float, asked: int = 4) -> InstanceRow:
    return InstanceRow(name, match(found, discs()), asked, {"box": box, "point": box / 2, "points3": box})


@pytest.fixture
def report() -> InstanceReport:
    rows = (row("a", answer(), 0.9), row("b", answer(1, 2), 0.5, asked=2), row("c", answer(4), 0.7))
    trivial = {"watershed_bright": [match(answer(1), discs())] * 3}
    return InstanceReport(rows, "val", dict(INSTANCE_DEFINITIONS), trivial)


def test_numbers_of_the_set(report: InstanceReport) -> None:
    whole = numbers([one.matches for one in report.rows])
    assert list(report.values) == ["AP50", "AP", "PQ", "AJI", "mDice"]
    assert report.choice == whole["AP50"]
    assert report.values["PQ"] == pytest.approx(9 / 10.5)  # 9 pairs, 3 missed
    assert report.values["mDice"] == pytest.approx((4 * 0.9 + 2 * 0.5 + 4 * 0.7) / 10)
    assert report.metrics["mDice_point"] == pytest.approx(report.values["mDice"] / 2)
    assert (report.metrics["objects_true"], report.metrics["objects_found"]) == (12, 9)
    assert report.metrics["count_error"] == pytest.approx(1)
    assert report.rows[1].ap50 == pytest.approx(51 / 101)
    for name, value in report.values.items():
        low, high = report.ci95[name]
        assert low <= value <= high and high - low < 0.7, name


def test_it_is_read_back(report: InstanceReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    again = InstanceReport.load(tmp_path)
    assert again.values == report.values and again.metrics == report.metrics and again.ci95 == report.ci95
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["task"] == "instances" and content["prompts"]["box"] == {
        "mDice": report.values["mDice"],
        "before": None,
    }
    assert content["trivial"] == {"watershed_bright": numbers(report.answers["watershed_bright"])["AP50"]}
    explained = set(content["definition"])
    assert set(content["metrics"]) - explained == {"objects_true", "objects_found"}


def test_gains_are_paired(report: InstanceReport) -> None:
    before = InstanceReport(tuple(row(one.name, answer(1, 2, 3), 0.4) for one in report.rows), "val", {})
    gains = report.gain(before)
    assert gains["mDice"][0] == pytest.approx(report.values["mDice"] - 0.4)
    assert all(low <= gain <= high for gain, low, high in gains.values())
    with pytest.raises(DataError, match="different images"):
        report.gain(replace(before, rows=before.rows[:2]))
    told = report.to_json(before)
    assert told["prompts"]["box"]["before"] == pytest.approx(0.4)
    shown = {cells[0]: cells[1:3] for cells in report.to_table(before).rows}
    assert shown["count_error"] == (3, 1) or list(shown["count_error"]) == [3, 1]


def test_without_prompts_and_without_objects(tmp_path: Path) -> None:
    nothing = Instances(np.zeros((40, 48), dtype=np.int32), np.zeros(0, dtype=np.float32))
    rows = (InstanceRow("a", match(nothing, nothing.labels)),)
    trivial = {"watershed_bright": [match(answer(), nothing.labels)]}
    empty = InstanceReport(rows, "val", dict(INSTANCE_DEFINITIONS), trivial)
    assert "mDice" not in empty.values and math.isnan(empty.values["AP50"])
    empty.save(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["AP50"] is None and content["prompts"] is None and content["trivial"] is None
    assert math.isnan(InstanceReport.load(tmp_path).rows[0].pq)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"split": "val", "definition": {}}')
    (tmp_path / "per_image.csv").write_text("name\na\n")
    with pytest.raises(DataError, match="evaluation of instances"):
        InstanceReport.load(tmp_path)


def test_forms_of_an_answer(tmp_path: Path) -> None:
    found = answer(2)
    with Image.open(BytesIO(index_png(found.labels))) as picture:
        np.testing.assert_array_equal(np.array(picture), found.labels)
    with Image.open(BytesIO(colour_png(found.labels))) as picture:
        pixels = np.array(picture)
        assert pixels.shape == (40, 48, 4) and len(np.unique(pixels.reshape(-1, 4), axis=0)) == 4
    images = {name: annotated(Path(f"{name}.png"), one, "cell") for name, one in (("a", found), ("b", answer()))}
    coco = json.loads(write_coco(Annotations(images, {1: "cell"}), tmp_path).read_text())
    assert len(coco["annotations"]) == 7 and coco["categories"] == [{"id": 1, "name": "cell"}]
    assert not any(one["iscrowd"] for one in coco["annotations"])
    assert [one["area"] for one in coco["annotations"][:3]] == np.bincount(found.labels.ravel())[1:].tolist()
    assert [one["score"] for one in coco["annotations"][:3]] == pytest.approx([0.75, 0.5, 0.25])
    features = geojson(found)["features"]
    assert [one["properties"] for one in features] == [
        {"object": n, "score": s} for n, s in ((1, 0.75), (2, 0.5), (3, 0.25))
    ]
    corner = features[0]["geometry"]["coordinates"][0][0]
    xs, ys = zip(*corner, strict=True)
    rows, columns = np.nonzero(found.labels == 1)
    assert min(xs) == columns.min() and max(xs) == columns.max() + 1 and min(ys) == rows.min()
    assert counts_csv({"a.png": 3, "b, c.png": 0}) == 'image,objects\na.png,3\n"b, c.png",0\n'


@pytest.mark.parametrize("form", [name for name in SEPARATE if name in WRITERS])
def test_answers_are_read_again_as_the_same_objects(tmp_path: Path, form: str) -> None:
    """In every format, two that touch and one with a hole included."""
    labels = discs()
    labels[12, 12] = 0
    image = tmp_path / ("a.png" if form == "labelme" else "images/a.png")
    image.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((40, 48, 3), dtype=np.uint8)).save(image)
    found = annotated(image, Instances(labels, np.full(4, 0.5, dtype=np.float32)), "cell")
    WRITERS[form](Annotations({"a": found}, {1: "cell"}), tmp_path)
    (pair,), problems = kind_of(tmp_path).scan(tmp_path)
    again = read_objects(pair.mask)
    assert problems == [] and again.max() == 4
    np.testing.assert_array_equal(again > 0, labels > 0)
    assert len(np.unique(np.stack([again, labels]).reshape(2, -1), axis=1).T) == 5  # one number for each other


def test_too_many_objects_for_16_bits() -> None:
    with pytest.raises(DataError, match=r"70,000 objects.*--format coco"):
        index_png(np.array([[0, 70_000]], dtype=np.int32))


def test_clicks_are_set_in_the_largest_error_of_the_picture() -> None:
    mask = np.zeros((16, 12), dtype=np.bool_)  # of a frame of 16 x 16
    mask[4:12, 0:8] = True
    right = np.zeros((4, 4), dtype=np.bool_)
    right[1:3, 0:2] = True
    missed, padded = right.copy(), right.copy()
    missed[1, 1], padded[:, 3] = False, True
    (x, y), sign = _largest_error(missed, mask, 4)
    assert 4 <= x < 8 and 4 <= y < 8 and sign == 1
    for found in (right, padded):  # nothing is wrong: the middle of the object
        (x, y), sign = _largest_error(found, mask, 4)
        assert 3 <= x <= 4 and 7 <= y <= 8 and sign == 1
    right[0, 2:] = True
    (x, y), sign = _largest_error(right, mask, 4)
    assert 8 <= x < 12 and y < 4 and sign == 0


def test_objects_that_are_asked_for_are_spread() -> None:
    assert spread(list(range(1, 8)), 3) == [1, 4, 7]
    assert spread([5, 9], 32) == [5, 9]
