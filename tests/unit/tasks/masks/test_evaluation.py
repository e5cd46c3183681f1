from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samtune.errors import ConfigError, DataError, NonFiniteError
from samtune.metrics.table import METRICS
from samtune.tasks.masks.evaluate import Report, Row, evaluate, measure, predict_batch
from samtune.tasks.masks.report import compare_reports
from samtune.types import Batch, Prediction

SIDE = 64


class FakeModel(nn.Module):
    """Answers with fixed low-res logits by name and remembers how it was called."""

    def __init__(self, logits: dict[str, Tensor]) -> None:
        super().__init__()
        self.logits = logits
        self.frozen = nn.BatchNorm2d(1)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, batch: Batch) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        return torch.stack([self.logits[name] for name in batch.names])[:, None]


def make_batch(names: list[str], sizes: list[tuple[int, int]], originals: list[tuple[int, int]]) -> Batch:
    truths = []
    for height, width in originals:
        truth = np.zeros((height, width), dtype=bool)
        truth[:, : width // 2] = True
        truths.append(truth)
    return Batch(
        images=torch.zeros(len(names), 3, SIDE, SIDE, dtype=torch.uint8),
        masks=torch.zeros(len(names), 1, SIDE, SIDE, dtype=torch.bool),
        sizes_input=tuple(sizes),
        names=tuple(names),
        truths=tuple(truths),
    )


def left_half(columns: int) -> Tensor:
    """Low-res logits that are positive in the first `columns` columns."""
    logits = torch.full((SIDE // 4, SIDE // 4), -4.0)
    logits[:, :columns] = 4.0
    return logits


@pytest.fixture
def batch() -> Batch:
    return make_batch(["wide", "tall"], [(32, 64), (64, 32)], [(50, 100), (128, 64)])


@pytest.fixture
def model() -> FakeModel:
    # The pictures are 64 and 32 px wide in the input frame, so their halves are 8 and 4 low-res columns.
    return FakeModel({"wide": left_half(8), "tall": left_half(4)})


def row(name: str, dice: float, truth_share: float = 0.1, truth_px: int = 100, pred_px: int = 100) -> Row:
    iou = dice / (2 - dice)
    return Row(name, dice, iou, 0.5, 0.5, truth_px, pred_px, {"truth_share": truth_share})


def test_predictions_are_at_the_original_size_without_padding(model: FakeModel, batch: Batch) -> None:
    predictions = predict_batch(model.eval(), batch, sizes_original=[(50, 100), (128, 64)])
    for prediction, truth in zip(predictions, batch.truths, strict=True):
        assert prediction.mask.dtype == np.bool_ and prediction.probability.dtype == np.float32
        np.testing.assert_array_equal(prediction.mask, truth)
        np.testing.assert_array_equal(prediction.mask, prediction.probability > 0.5)
        assert prediction.score == pytest.approx(prediction.probability[truth].mean())
    assert model.seen == [(False, False)]


def test_prediction_does_not_depend_on_the_batch(model: FakeModel, batch: Batch) -> None:
    together = predict_batch(model, batch, sizes_original=[(50, 100), (128, 64)])
    alone = predict_batch(model, make_batch(["tall"], [(64, 32)], [(128, 64)]), sizes_original=[(128, 64)])
    np.testing.assert_array_equal(together[1].probability, alone[0].probability)


def test_an_empty_mask_has_score_zero(batch: Batch) -> None:
    silent = FakeModel({"wide": left_half(0), "tall": torch.zeros(16, 16)})  # logit 0 is background
    predictions = predict_batch(silent, batch, sizes_original=[(50, 100), (128, 64)])
    assert [p.score for p in predictions] == [0.0, 0.0]
    assert not any(p.mask.any() for p in predictions)


def test_autocast_reaches_the_model_only(batch: Batch) -> None:
    class Linear(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            logits = torch.full((len(batch), 1, 16, 16), 1.001) @ torch.eye(16)
            self.dtype = logits.dtype
            return logits

    model = Linear()
    (prediction, _) = predict_batch(model, batch, sizes_original=[(5, 9), (9, 5)], autocast_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and prediction.probability.dtype == np.float32
    predict_batch(model, batch, sizes_original=[(5, 9), (9, 5)])
    assert model.dtype == torch.float32


def test_evaluate_measures_every_image_in_order(model: FakeModel, batch: Batch) -> None:
    model.logits["tall"] = left_half(8)  # everything foreground: precision 1/2
    report = evaluate(model, [batch], split="val")
    assert [r.name for r in report.rows] == ["wide", "tall"]
    assert report.rows[0].dice == report.rows[0].iou == 1.0
    assert report.rows[1].iou == 0.5 and report.rows[1].precision == 0.5 and report.rows[1].recall == 1.0
    assert report.rows[1].truth_px == 64 * 64 and report.rows[1].pred_px == 128 * 64
    assert report.mDice == pytest.approx((1 + 2 / 3) / 2) and report.mIoU == 0.75
    assert report.metrics["mae"] == 0.25
    assert report.metrics["pooled_iou"] == pytest.approx((2500 + 4096) / (2500 + 8192))
    assert report.split == "val"


def test_evaluate_restores_the_mode_of_every_module(model: FakeModel, batch: Batch) -> None:
    model.train()
    model.frozen.eval()
    evaluate(model, [batch])
    assert model.training and not model.frozen.training
    with pytest.raises(DataError):
        evaluate(model, [])
    assert model.training and not model.frozen.training


def test_metrics_on_request(model: FakeModel, batch: Batch) -> None:
    names = ("hd95", "surface_dice", "pranet_dice", "gps_released_iou", "dice")
    seen = []
    report = evaluate(model, [batch], metrics=names, on_batch=lambda b, p: seen.append((b.names, len(p))))
    assert report.rows[0].extra["hd95"] == 0.0
    assert report.metrics["surface_dice"] == 1.0 and report.metrics["gps_released_iou"] == 1.0
    assert "mae" not in report.metrics and "pooled_dice" not in report.metrics
    assert set(names) <= report.definition.keys()
    assert seen == [(("wide", "tall"), 2)]


def test_unknown_metrics_are_all_named(model: FakeModel) -> None:
    with pytest.raises(ConfigError, match=r"'hd59'. Did you mean 'hd95'\?.*unknown metric 'xyz'"):
        evaluate(model, [], metrics=("hd59", "xyz"))


def test_an_empty_loader_is_an_error(model: FakeModel) -> None:
    with pytest.raises(DataError, match=r"the val loader has no batch.*data\.split"):
        evaluate(model, [], split="val")


def test_missing_truths_are_an_error(model: FakeModel, batch: Batch) -> None:
    with pytest.raises(DataError, match="wide, tall has 0 truths for 2 images"):
        evaluate(model, [replace(batch, truths=())])


def test_non_finite_logits_name_the_image(model: FakeModel, batch: Batch) -> None:
    model.logits["tall"] = torch.full((16, 16), torch.nan)
    with pytest.raises(NonFiniteError, match="logits of tall are not finite"):
        evaluate(model, [batch])


def prediction_of(mask: np.ndarray) -> Prediction:
    return Prediction(mask=mask, probability=mask.astype(np.float32), score=float(mask.any()))


def test_an_image_without_an_object_is_in_no_mean() -> None:
    nothing = np.zeros((4, 5), dtype=bool)
    some, more = nothing.copy(), nothing.copy()
    some[0, :2], more[:2, :3] = True, True
    rows = [
        measure(str(i), prediction_of(mask), nothing, metrics=("mae",)) for i, mask in enumerate((nothing, some, more))
    ]
    assert all(math.isnan(getattr(row, name)) for row in rows for name in ("dice", "iou", "precision", "recall"))
    rows.append(measure("right", prediction_of(some), more, metrics=("mae",)))  # 2 of 6 pixels: Dice 2 * 2 / (2 + 6)
    report = Report(tuple(rows), "test", {"pooled_dice": "", "mDice": "", "ci95": ""})
    assert (report.mDice, report.mIoU) == (0.5, pytest.approx(1 / 3))
    assert report.ci95["mDice"] == (0.5, 0.5)
    metrics = report.metrics
    assert metrics["empty_images"] == 3 and metrics["empty_false"] == pytest.approx(2 / 3)
    assert metrics["empty_false_px"] == 4 and metrics["empty_false_area"] == pytest.approx(4 / 20)
    assert metrics["pooled_dice"] == 0.5 and metrics["mae"] == pytest.approx(4 / 20)  # of the image with an object
    assert not [name for name in metrics if name.endswith("undefined")]
    false = "66.7% of them with a false mask, 4 px on average, 20.00% of the picture"
    line = f"3 images without an object, in no mean: {false}"
    assert report.apart() == [line]
    table = report.to_table(replace(report, rows=(*(replace(row, pred_px=0) for row in rows[:3]), *rows[3:])))
    assert table.notes[0] == line and table.notes[1].endswith("0.0% of them with a false mask")
    assert "1 image can't tell" in report.doubts[0]


def test_images_without_false_masks_have_no_area() -> None:
    nothing = np.zeros((4, 5), dtype=bool)
    rows = (measure("a", prediction_of(nothing), nothing), row("b", 0.4))
    report = Report(rows, "test", {})
    assert report.left_out == {"empty_images": 1, "empty_false": 0.0}
    assert report.apart() == ["1 image without an object, in no mean: 0.0% of them with a false mask"]
    assert Report(rows[1:], "test", {}).left_out == {"empty_images": 0}
    assert Report(rows[1:], "test", {}).apart() == []


def test_a_report_of_images_without_an_object_survives_the_disk(tmp_path: Path) -> None:
    nothing = np.zeros((4, 5), dtype=bool)
    rows = (measure("a", prediction_of(~nothing), nothing, metrics=()), row("b", 0.4))
    Report(rows, "test", {}).save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.mDice == 0.4 and loaded.left_out["empty_false"] == 1.0
    table = (tmp_path / "per_image.csv").read_text().replace("nan,nan,nan,nan", "0.0,0.0,0.0,0.0")
    (tmp_path / "per_image.csv").write_text(table)  # as earlier versions wrote it
    assert Report.load(tmp_path).mDice == 0.4


def test_definitions_say_what_the_means_are_of(model: FakeModel, batch: Batch) -> None:
    definition = evaluate(model, [batch]).definition
    assert "only images whose truth has foreground count" in definition["mDice"]
    assert "all other numbers leave them out" in definition["empty_images"]


def test_sizes_of_objects() -> None:
    rows = (
        row("s", 0.2, 0.049),
        row("m1", 0.4, 0.05),
        row("m2", 0.6, 0.1),
        row("l", 0.8, 0.2),
        row("none", math.nan, 0.0, truth_px=0),
    )
    metrics = Report(rows=rows, split="test", definition={}).metrics
    assert [metrics[f"{size}_images"] for size in ("small", "medium", "large")] == [1, 2, 1]
    assert metrics["medium_dice"] == pytest.approx(0.5)
    assert metrics["small_dice"] == 0.2 and metrics["large_dice"] == 0.8
    assert metrics["empty_images"] == 1


def test_overlap_is_recovered_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        prediction, truth = rng.random((2, 31, 37)) > rng.random()
        values = [METRICS[m](prediction, truth) for m in ("dice", "iou", "precision", "recall")]
        pixels = int(truth.sum()), int(prediction.sum())
        assert Row("x", *values, *pixels).overlap_px == (prediction & truth).sum()


def test_metrics_json_has_the_promised_form(tmp_path: Path, model: FakeModel, batch: Batch) -> None:
    report = evaluate(model, [batch], metrics=("mae", "hd95"))
    before = replace(report, rows=(row("wide", 0.2), row("tall", 0.4)))
    report.save(tmp_path / "run", before=before, trainable={"selected": 10, "total": 1000, "percent": 1.0})
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(content) == [
        "task", "split", "n_images", "mDice", "mIoU", "ci95", "definition", "metrics", "before", "gain", "trivial",
        "trainable", "prompts", "advice",
    ]  # fmt: skip
    assert content["n_images"] == 2 and content["mDice"] == 1.0
    assert content["ci95"] == {"mDice": [1.0, 1.0], "mIoU": [1.0, 1.0]}
    assert content["before"]["mDice"] == pytest.approx(0.3)
    gain, low, high = content["gain"]["mDice"]
    assert gain == pytest.approx(0.7) and low <= gain <= high
    assert content["trainable"]["percent"] == 1.0
    assert report.to_json()["before"] is None and report.to_json()["trainable"] is None


def test_metrics_that_were_asked_for_are_in_the_table(model: FakeModel, batch: Batch) -> None:
    report = evaluate(model, [batch], metrics=("mae", "hd95", "gps_released_dice"))
    rows = {row[0]: row[1:] for row in report.to_table().rows}
    assert list(rows) == ["mDice", "mIoU", "hd95", "gps_released_dice"]
    assert list(rows["hd95"]) == [0.0, ""]
    before = report.to_table(report)
    assert list(before.rows[-1]) == ["gps_released_dice", 1.0, 1.0, "", "", ""]
    assert all(len(row) == len(before.columns) for row in before.rows)


def test_undefined_numbers_become_null(tmp_path: Path) -> None:
    silent = Row("a", 0.0, 0.0, 0.0, 0.0, 10, 0, {"truth_share": 0.1, "hd95": math.nan})
    report = Report(rows=(silent,), split="test", definition={})
    report.save(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"]["hd95"] is None and content["metrics"]["hd95_undefined"] == 1
    assert content["metrics"]["small_dice"] is None


def test_report_survives_the_disk(tmp_path: Path, model: FakeModel, batch: Batch) -> None:
    report = evaluate(model, [batch])
    report.save(tmp_path)
    with (tmp_path / "per_image.csv").open() as file:
        header = next(csv.reader(file))
    assert ",".join(header) == "name,dice,iou,precision,recall,truth_px,pred_px,truth_share,mae"
    assert Report.load(tmp_path) == report


@pytest.mark.parametrize("damage", ["missing", "no json", "no csv", "wrong column"])
def test_unreadable_reports_are_errors(tmp_path: Path, damage: str) -> None:
    Report(rows=(row("a", 0.5),), split="test", definition={}).save(tmp_path)
    if damage == "no json":
        (tmp_path / "metrics.json").write_text("{")
    if damage == "no csv":
        (tmp_path / "per_image.csv").unlink()
    if damage == "wrong column":
        (tmp_path / "per_image.csv").write_text("name,dice\na,0.5\n")
    folder = tmp_path / "absent" if damage == "missing" else tmp_path
    with pytest.raises(DataError, match=r"does not hold metrics\.json and per_image\.csv.*samtune evaluate"):
        Report.load(folder)


def test_compare_reports_pairs_by_name() -> None:
    a = Report(rows=(row("x", 0.5), row("y", 0.7)), split="test", definition={})
    b = Report(rows=(row("y", 0.8), row("x", 0.6)), split="test", definition={})
    mean, low, high = compare_reports(a, b)["mDice"]
    assert mean == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert compare_reports(a, b)["mIoU"][0] > 0
    with pytest.raises(DataError, match=r"1 are in one report only, such as 'y'"):
        compare_reports(a, replace(b, rows=b.rows[1:]))


def test_logits_are_resized_before_the_threshold() -> None:
    """+11 beside -5: the line of 0 is within a pixel of the input frame, which a mask that is enlarged can't show."""
    logits = torch.full((SIDE // 4, SIDE // 4), -5.0)
    logits[:, :8] = 11.0
    batch = make_batch(["wide"], [(64, 64)], [(256, 256)])
    (prediction,) = predict_batch(FakeModel({"wide": logits}), batch, sizes_original=[(256, 256)])
    assert set(prediction.mask.sum(axis=1).tolist()) == {131}  # 11/16 of the way between the centres 120 and 136
    assert prediction.mask[:, :131].all()
    edge = prediction.probability[0, 126:134]
    assert np.all(np.diff(edge) < 0) and edge[4] > 0.5 > edge[5]
