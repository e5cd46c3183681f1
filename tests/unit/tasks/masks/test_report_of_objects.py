"""A report of prompted objects draws images for its intervals, and counts images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fake_runs import write_run

from samtune.compare.compare import compare
from samtune.metrics.bootstrap import bootstrap_ci, paired_bootstrap
from samtune.tasks.masks.evaluate import evaluate
from samtune.tasks.masks.report import Report, Row
from samtune.types import Batch, Prompts

NAMES = ("a#1", "a#2", "a#3", "b#1", "c#1")
IMAGES = ["a", "a", "a", "b", "c"]
DICE = (0.9, 0.8, 0.9, 0.2, 0.5)


def report_of(dice: tuple[float, ...], unit: str) -> Report:
    rows = [Row(name, value, value / 2, 1.0, 1.0, 9, 9) for name, value in zip(NAMES, dice, strict=True)]
    return Report(tuple(rows), "test", {"mDice": f"Mean over {unit}s of the foreground Dice."})


def test_objects_of_an_image_are_drawn_together() -> None:
    report, other = report_of(DICE, "object"), report_of(DICE[::-1], "object")
    assert (report.images, report.n_images) == (IMAGES, 3)
    assert report.ci95["mDice"] == bootstrap_ci(DICE, images=IMAGES) != bootstrap_ci(DICE)
    assert report.ci95["mIoU"] == bootstrap_ci([value / 2 for value in DICE], images=IMAGES)
    assert other.gain(report)["mDice"] == paired_bootstrap(DICE, DICE[::-1], images=IMAGES)
    assert report.mDice == np.mean(DICE)  # still the mean over objects


def test_images_whose_names_end_like_objects_are_images() -> None:
    report = report_of(DICE, "image")
    assert (report.images, report.n_images) == (list(NAMES), 5)
    assert report.ci95["mDice"] == bootstrap_ci(DICE)


def test_a_report_that_was_read_back_knows_its_objects(tmp_path: Path) -> None:
    report = report_of(DICE, "object")
    report.save(tmp_path)
    assert Report.load(tmp_path).ci95 == report.ci95


def test_a_comparison_draws_images_too(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", DICE, names=NAMES)
    report_of(DICE, "object").save(first)
    (row,) = compare([first]).rows
    assert row.ci95("mDice") == bootstrap_ci(DICE, images=IMAGES)
    assert row.minus(row, "mIoU") == (0.0, 0.0, 0.0)


class Silent(torch.nn.Module):
    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.ones(len(batch), 1, 8, 8)


def test_the_definition_says_what_is_drawn() -> None:
    truth = np.ones((32, 32), dtype=bool)
    images, masks = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    said = {}
    for prompts in (None, Prompts(boxes_input=torch.zeros(1, 4))):
        batch = Batch(images, masks, ((32, 32),), ("a",), (truth,), prompts)
        said[prompts is None] = evaluate(Silent(), [batch], metrics=()).definition["ci95"]
    start = "95 % percentile bootstrap interval of the mean over "
    assert said[True] == start + "images (1000 resamples, seed 0)."
    assert said[False] == start + "objects (1000 resamples of the images, each with all its objects, seed 0)."
