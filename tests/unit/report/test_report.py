from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pages import Checker

from samtune.errors import DiskError
from samtune.report.page import MISTAKES_NOTE, OVERLAYS_NOTE, save_report, wrong_classes_section
from samtune.report.svg import curve, interval, nice_ticks

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8
METRICS: dict[str, Any] = {
    "split": "test",
    "n_images": 100,
    "mDice": 0.9051,
    "mIoU": 0.8304,
    "ci95": {"mDice": [0.88, 0.93], "mIoU": [0.80, 0.86]},
    "definition": {"hd95": "Distance of <outlines>.", "dice": "Overlap."},
    "metrics": {"dice": 0.9051, "hd95": None, "both_empty": 3},
    "before": {"mDice": 0.5, "mIoU": 0.9},
}
HISTORY: list[dict[str, Any]] = [
    {"step": 1, "epoch": 1, "split": "train", "loss": 2.0},
    {"step": 2, "epoch": 1, "split": "train", "loss": 1.0},
    {"step": 3, "epoch": 2, "split": "train", "loss": 0.25},
    {"step": 4, "epoch": 2, "split": "train", "loss": math.nan},
    {"step": 5, "epoch": 3, "split": "train", "loss": None, "lr": 0.1},
    {"step": 2, "epoch": 1, "split": "val", "mDice": 0.7},
    {"step": 4, "epoch": 2, "split": "val", "mDice": 0.8},
]
COUNTS = {"selected": 84_224, "bias": 0, "decoder": 4_058_596, "total": 4_142_820, "percent": 4.419}


def make_report(folder: Path, **changes: Any) -> tuple[str, Checker]:
    (folder / "a.png").write_bytes(PNG)
    arguments: dict[str, Any] = {
        "title": "polyp",
        "metrics": METRICS,
        "history": HISTORY,
        "counts": COUNTS,
        "overlays": [("worst, Dice 0.1", folder / "a.png")],
        "command": "samtune finetune --config polyp.yaml",
        "config_yaml": "task: segmentation\nrun:\n  name: polyp\n",
        "facts": {"Model": "sam_vit_b"},
    }
    save_report(folder / "report.html", **{**arguments, **changes})
    page = (folder / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return page, checker


def test_the_headline_shows_before_after_interval_and_change(tmp_path: Path) -> None:
    page, checker = make_report(tmp_path)
    for words in (
        "90.5",
        "+40.5 points",
        "50.0 before tuning",
        "95 % interval 88.0 to 93.0",
        "100 test images",
    ):
        assert words in checker.words
    assert "-7.0 points" in checker.words and 'class="delta down"' in page


def test_the_file_is_self_contained(tmp_path: Path) -> None:
    page, checker = make_report(tmp_path)
    assert checker.links == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert "<script" not in page and "@import" not in page and "url(" not in page and "http" not in page
    assert str(tmp_path) not in page
    assert "prefers-color-scheme: dark" in page


def test_all_sections_in_order(tmp_path: Path) -> None:
    page, checker = make_report(tmp_path)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Training", "Pictures", "All metrics", "What was trained", "Reproduce", "Configuration",
    ]  # fmt: skip
    assert "4,142,820" in checker.words and "4.42 % of the model" in checker.words
    assert "Biases" not in checker.words  # a part that did not train is not listed
    assert "n/a" in checker.words and "0.9051" in checker.words and "3" in checker.words
    assert "Show all 3 lines" in checker.words


def test_curves_are_means_of_the_finite_values_by_epoch(tmp_path: Path) -> None:
    page, _ = make_report(tmp_path)
    assert 'aria-label="Training loss: 1.500 at epoch 1, 0.250 at epoch 2"' in page
    assert 'aria-label="Validation mDice: 70.0 at epoch 1, 80.0 at epoch 2"' in page


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    bare = {"split": "test", "n_images": 0, "mDice": None, "mIoU": None, "ci95": {"mDice": [None, None]}}
    page, checker = make_report(
        tmp_path,
        metrics=bare,
        history=HISTORY[:1],
        counts={},
        overlays=[],
        command="",
        config_yaml="",
        facts={},
    )
    assert "<h2>" not in page and checker.words.count("n/a") == 2
    assert "points" not in page and "interval" not in checker.words


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&$title'
    page, checker = make_report(
        tmp_path,
        title=evil,
        metrics={**METRICS, "split": evil, "metrics": {evil: 1.0}, "definition": {evil: evil}},
        overlays=[(evil, tmp_path / "a.png")],
        command=evil,
        config_yaml=evil,
        facts={evil: evil},
    )
    assert "<script" not in page
    assert sum(evil in words for words in checker.words) >= 8


def test_disk_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"can't read the picture .*absent\.png.*Save the overlays first"):
        make_report(tmp_path, overlays=[("x", tmp_path / "absent.png")])
    with pytest.raises(DiskError, match=r"can't write .*report\.html.*--run-dir"):
        save_report(
            tmp_path / "absent" / "report.html",
            title="", metrics={}, history=[], counts={}, overlays=[], command="", config_yaml="", facts={},
        )  # fmt: skip


CLASS_METRICS: dict[str, Any] = {
    "split": "test",
    "n_images": 3000,
    "top1": 0.638,
    "top5": 0.899,
    "mean_per_class": 0.621,
    "ci95": {"top1": [0.62, 0.66], "top5": [0.88, 0.91], "mean_per_class": [0.6, 0.64]},
    "definition": {"top1": "Share of the images.", "ece": "Gap."},
    "metrics": {"top1": 0.638, "n_classes": 100, "ece": 0.05},
    "before": None,
    "gain": None,
}
CLASS_HISTORY: list[dict[str, Any]] = [
    {"split": "val", "step": 10, "epoch": 1, "top1": 0.25, "top5": 0.5, "mean_per_class": 0.2},
    {"split": "val", "step": 20, "epoch": 2, "top1": 0.5, "top5": 0.75, "mean_per_class": 0.4},
]


def make_class_report(folder: Path, rows: list[tuple[str, int, float, str]]) -> tuple[str, Checker]:
    (folder / "confusion.png").write_bytes(PNG)
    return make_report(
        folder,
        metrics=CLASS_METRICS,
        history=CLASS_HISTORY,
        pictures_note=MISTAKES_NOTE,
        extra_sections=[wrong_classes_section(rows, folder / "confusion.png")],
    )


def test_a_classification_has_its_own_headline_and_curve(tmp_path: Path) -> None:
    page, checker = make_class_report(tmp_path, [])
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert headings == [
        "Top-1 accuracy (top1)", "Top-5 accuracy (top5)", "Mean per class (mean_per_class)",
        "Validation top-1 accuracy by epoch",
    ]  # fmt: skip
    assert "95 % interval 62.0 to 66.0" in checker.words and "3,000 test images" in checker.words
    assert 'aria-label="Validation top-1 accuracy: 25.0 at epoch 1, 50.0 at epoch 2"' in page
    assert (
        MISTAKES_NOTE in checker.words and OVERLAYS_NOTE not in checker.words and "Dice" not in page.split("</h1>")[0]
    )


def test_a_classification_without_top5_has_two_cards(tmp_path: Path) -> None:
    metrics = {name: value for name, value in CLASS_METRICS.items() if name != "top5"}
    page, _ = make_report(tmp_path, metrics=metrics, history=[])
    assert "Top-5" not in page and page.count("<h3>") == 2


def test_classes_that_go_wrong_follow_the_pictures(tmp_path: Path) -> None:
    page, checker = make_class_report(tmp_path, [("<cat>", 1500, 0.25, "dog (300)"), ("ship", 3, 0.5, "car (1)")])
    assert re.findall(r"<h2>(.*?)</h2>", page)[1:4] == ["Pictures", "Classes that go wrong", "All metrics"]
    assert checker.rows[:3] == [
        ["Class", "Images", "Accuracy", "Most often taken for"],
        ["<cat>", "1,500", "25.0", "dog (300)"],
        ["ship", "3", "50.0", "car (1)"],
    ]
    assert len(checker.links) == 2 and "<cat>" not in page


def test_a_model_without_mistakes_has_no_table_of_them(tmp_path: Path) -> None:
    _, checker = make_class_report(tmp_path, [])
    assert "No class goes wrong." in checker.words and len(checker.links) == 2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 1.4, [0.0, 0.5, 1.0, 1.5]),
        (59.0, 91.0, [50, 60, 70, 80, 90, 100]),
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (3.0, 3.0, [2.5, 3.0, 3.5]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize("span", [1e-12, 1e-6, 0.003, 0.7, 12.0, 5e8])
@pytest.mark.parametrize("low", [-3.0, 0.0, 0.123, 1e4])
def test_ticks_of_any_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= low + span - 1e-9
    assert 3 <= len(ticks) <= 7 or (len(ticks) == 2 and span < 1e-9)


def test_a_curve_stays_inside_and_labels_few_epochs() -> None:
    drawn = curve([(epoch, math.sin(epoch)) for epoch in range(1, 101)], label="x", form="{:.2f}")
    line = re.search(r'polyline class="curve" points="([^"]*)"', drawn)
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line[1].split()]
    assert len(places) == 100
    assert all(0 <= x <= 460 and 0 <= y <= 220 for x, y in places)
    epochs = re.findall(r'y="214" text-anchor="middle">(\d+)<', drawn)
    assert epochs[0] == "1" and epochs[-1] == "100" and len(epochs) <= 7
    assert len(set(epochs)) == len(epochs)


def test_an_interval_without_bounds_or_before() -> None:
    drawn = interval(0.5, low=None, high=None, before=None, label="a & b")
    assert 'cx="230.0"' in drawn and "range" not in drawn and "before" not in drawn
    assert 'aria-label="a &amp; b"' in drawn
