from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pages import Checker

from samtune.base.figures import to_svg
from samtune.errors import DiskError
from samtune.report.page import Picture, Section, Table
from samtune.report.run import Run, curve, save_report

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
    "gain": {"mDice": [0.4051, 0.35, 0.45], "mIoU": [-0.0696, -0.1, -0.04]},
    "trainable": {"selected": 84_224, "bias": 0, "decoder": 4_058_596, "total": 4_142_820, "percent": 4.419},
}
HEADLINES = {"mDice": "Mean Dice", "mIoU": "Mean IoU"}
NOTE = "What the <pictures> show."
HISTORY: list[dict[str, Any]] = [
    {"step": 1, "epoch": 1, "split": "train", "loss": 2.0},
    {"step": 2, "epoch": 1, "split": "train", "loss": 1.0},
    {"step": 3, "epoch": 2, "split": "train", "loss": 0.25},
    {"step": 4, "epoch": 2, "split": "train", "loss": math.nan},
    {"step": 5, "epoch": 3, "split": "train", "loss": None, "lr": 0.1},
    {"step": 2, "epoch": 1, "split": "val", "mDice": 0.7},
    {"step": 4, "epoch": 2, "split": "val", "mDice": 0.8},
]


def make_report(folder: Path, **changes: Any) -> tuple[str, Checker]:
    (folder / "a.png").write_bytes(PNG)
    arguments: dict[str, Any] = {
        "title": "polyp",
        "facts": {"Model": "sam_vit_b"},
        "metrics": METRICS,
        "headlines": HEADLINES,
        "choice": "mDice",
        "history": HISTORY,
        "best_epoch": 2,
        "sections": [Section("Pictures", NOTE, pictures=[Picture("worst, Dice 0.1", folder / "a.png")])],
        "command": "samtune finetune --config polyp.yaml",
        "config_yaml": "task: segmentation\nrun:\n  name: polyp\n",
    }
    save_report(folder / "report.html", Run(**{**arguments, **changes}))
    page = (folder / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return page, checker


def test_the_headline_shows_before_after_interval_and_change(tmp_path: Path) -> None:
    page, checker = make_report(tmp_path)
    for words in ("90.5", "+40.5 points", "50.0 before tuning", "95 % interval 88.0 to 93.0", "100 test images"):
        assert words in checker.words
    assert '<span class="delta up">+40.5 points' in page and '<span class="delta down">-7.0 points' in page
    assert "gain +35.0 to +45.0 points (95 % interval)" in checker.words
    left, width = re.findall(r'class="range" style="left:(.*?)%;width:(.*?)%"', page)[0]
    assert (float(left), float(width)) == (88, 5)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ([0.01, -0.02, 0.04], ["gain -2.0 to +4.0 points (95 % interval, holds 0)"]),
        ([0.01, None, None], []),
        (None, []),
    ],
)
def test_a_gain_that_may_be_none_is_not_shown_as_one(
    tmp_path: Path, gain: list[float | None] | None, words: list[str]
) -> None:
    before = {"mDice": 0.8951}
    page, checker = make_report(tmp_path, metrics={**METRICS, "before": before, "gain": gain and {"mDice": gain}})
    assert '<span class="delta unsure">+1.0 points' in page and "delta up" not in page
    assert [word for word in checker.words if word.startswith("gain")] == words


def test_the_report_says_when_and_how_long(tmp_path: Path) -> None:
    _, checker = make_report(tmp_path)
    assert "Finished " not in checker.words and "Training took " not in checker.words
    events = [{"time": 1.7e9, "split": "fit", "step": 4, "seconds": 4000.4}, {"time": 1.7e9 + 60, "split": "test"}]
    _, checker = make_report(tmp_path, history=[*HISTORY, *events])
    assert "2023-11-14 22:14 UTC" in checker.words and "1 h 06 min" in checker.words
    assert "Selecting took " not in checker.words
    _, checker = make_report(tmp_path, history=[{"split": "select", "step": 0, "seconds": 2.34, "memory_mib": 1234.5}])
    assert "2.3 s, 1,234 MiB" in checker.words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (3599.6, "1 h 00 min")]
)
def test_durations_read_well(tmp_path: Path, seconds: float, words: str) -> None:
    _, checker = make_report(tmp_path, history=[{"split": "fit", "seconds": seconds}])
    assert words in checker.words


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
    assert "4,142,820" in checker.words and "4.42 % of the model's parameters." in checker.words
    assert "Biases" not in checker.words  # a part that did not train is not listed
    assert "n/a" in checker.words and "0.9051" in checker.words and "3" in checker.words
    assert "Show all 3 lines" in checker.words


def test_advice_comes_first_and_trivial_answers_are_numbers(tmp_path: Path) -> None:
    told = {"advice": ["the model is not better", "2 images"], "trivial": {"otsu_bright": 0.91}}
    page, checker = make_report(tmp_path, metrics={**METRICS, **told})
    assert re.findall(r"<h2>(.*?)</h2>", page)[0] == "Before you rely on it"
    assert re.findall(r"<li>(.*?)</li>", page)[-2:] == ["The model is not better", "2 images"]
    assert "otsu_bright" in checker.words and "0.9100" in checker.words
    assert "rely" not in make_report(tmp_path)[0]


def test_curves_are_means_of_the_finite_values_by_epoch(tmp_path: Path) -> None:
    page, _ = make_report(tmp_path)
    assert 'aria-label="Training loss: 1.500 at epoch 1, 0.250 at epoch 2"' in page
    assert 'aria-label="Validation mean Dice: 70.0 at epoch 1, 80.0 at epoch 2; the best is 80.0 at epoch 2"' in page


def test_the_best_epoch_is_marked_on_the_validation_curve(tmp_path: Path) -> None:
    values = [{"split": "val", "epoch": epoch, "mDice": value} for epoch, value in ((1, 0.5), (2, 0.75), (3, 0.625))]
    page, checker = make_report(tmp_path, history=values, best_epoch=2)
    assert "Ringed: 75.0 at epoch 2, the best; its weights were kept." in checker.words
    plain, checker = make_report(tmp_path, history=values, best_epoch=9)  # an epoch without a finite value
    assert "Ringed" not in " ".join(checker.words)
    assert page.count("<use ") == plain.count("<use ") + 1


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    bare = {
        "split": "test", "n_images": 0, "mDice": None, "mIoU": None, "ci95": {"mDice": [None, None]}, "trainable": None,
    }  # fmt: skip
    page, checker = make_report(
        tmp_path, metrics=bare, history=HISTORY[:1], sections=[], command="", config_yaml="", facts={}
    )
    assert "<h2>" not in page and checker.words.count("n/a") == 2
    assert "points" not in page and "interval" not in checker.words


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&$title'
    page, checker = make_report(
        tmp_path,
        title=evil,
        metrics={**METRICS, "split": evil, "metrics": {evil: 1.0}, "definition": {evil: evil}},
        headlines={"mDice": evil},
        sections=[
            Section(evil, evil, tables=[Table({evil: "name"}, [[evil]])], pictures=[Picture(evil, tmp_path / "a.png")])
        ],
        command=evil,
        config_yaml=evil,
        facts={evil: evil},
    )
    assert "<script" not in page
    assert sum(evil in words for words in checker.words) >= 15


def test_disk_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"can't read the picture .*absent\.png.*Save the overlays first"):
        make_report(tmp_path, sections=[Section("x", pictures=[Picture("x", tmp_path / "absent.png")])])
    with pytest.raises(DiskError, match=r"can't write to .*report\.html: .*Choose a writable folder"):
        (tmp_path / "report.html").mkdir()
        make_report(tmp_path)


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


CLASS: dict[str, Any] = {
    "headlines": {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy", "mean_per_class": "Mean per class"},
    "choice": "top1",
}


def test_a_classification_has_its_own_headline_and_curve(tmp_path: Path) -> None:
    page, checker = make_report(tmp_path, metrics=CLASS_METRICS, **CLASS, history=CLASS_HISTORY)
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert headings == [
        "Top-1 accuracy (top1)", "Top-5 accuracy (top5)", "Mean per class (mean_per_class)",
        "Validation top-1 accuracy by epoch",
    ]  # fmt: skip
    assert "95 % interval 62.0 to 66.0" in checker.words and "3,000 test images" in checker.words
    assert 'aria-label="Validation top-1 accuracy: 25.0 at epoch 1, 50.0 at epoch 2; the best' in page
    assert "mDice" not in page


def test_a_classification_without_top5_has_two_cards(tmp_path: Path) -> None:
    metrics = {name: value for name, value in CLASS_METRICS.items() if name != "top5"}
    page, _ = make_report(tmp_path, metrics=metrics, **CLASS, history=[])
    assert "Top-5" not in page and page.count("<h3>") == 2


def test_a_curve_has_round_ticks_and_few_epochs() -> None:
    figure = curve([(epoch, math.sin(epoch)) for epoch in range(1, 101)], form="{:.2f}", ringed=(14, math.sin(14)))
    drawn = to_svg(figure)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low <= -1 and high >= 1 and list(axes.get_yticks()) == [-1, -0.5, 0, 0.5, 1]
    epochs = [tick for tick in axes.get_xticks() if 1 <= tick <= 100]
    assert 3 <= len(epochs) <= 7 and all(epoch == int(epoch) for epoch in epochs)
    assert ">-0.51</text>" in drawn  # of epoch 100, as the form says


@pytest.mark.parametrize("values", [(3.0, 3.0), (0.0, 1e-12), (1e4, 1e4 + 1e-6), (-3.0, 5e8)])
def test_a_curve_of_any_range_is_inside_its_axes(values: tuple[float, float]) -> None:
    (axes,) = curve(list(enumerate(values)), form="{:.3g}").axes
    low, high = axes.get_ylim()
    assert low <= min(values) and max(values) <= high
    assert 3 <= len(axes.get_yticks()) <= 8
