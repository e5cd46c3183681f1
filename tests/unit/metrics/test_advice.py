"""Sentences for poor and uncertain results: said where they are true, and not where all is well."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samtune.metrics.advice import not_better, parted, too_small, uncertain

NAMES = [f"p{index}" for index in range(40)]
WORDS = {"otsu": "a threshold"}


def spread(mean: float, seed: int = 0) -> list[float]:
    return (mean + 0.02 * np.random.default_rng(seed).standard_normal(len(NAMES))).tolist()


def test_a_model_that_beats_every_trivial_answer_is_left_alone() -> None:
    trivial = {"otsu": spread(0.6, 1), "all": spread(0.3, 2)}
    assert not_better(spread(0.8), trivial, images=NAMES, name="mDice", words=WORDS) == []
    assert not_better(spread(0.8), {}, images=NAMES, name="mDice", words=WORDS) == []


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.8, "not clearly better than a threshold"), (0.7, "worse than a thresh")]
)
def test_the_best_trivial_answer_is_named_with_its_interval(mean: float, verdict: str) -> None:
    trivial = {"all": spread(0.3, 2), "otsu": spread(0.8, 1)}
    (line,) = not_better(spread(mean), trivial, images=NAMES, name="mDice", words=WORDS)
    assert verdict in line and "reaches mDice 0.8" in line and "95 % interval" in line


def test_objects_of_one_image_are_drawn_together() -> None:
    better = [0.9] * 4 + [0.1] * 4  # 2 images that disagree: 8 objects would look like a clear gain
    trivial = {"box": [0.05] * 4 + [0.2] * 4}
    assert not_better(better, trivial, images=["a"] * 4 + ["b"] * 4, name="mDice", words={})
    assert not not_better(better, trivial, images=NAMES[:8], name="mDice", words={})


def test_undefined_rows_are_left_out_and_undefined_answers_compared_with_nothing() -> None:
    values = [math.nan, *spread(0.9)[1:]]
    assert not_better(values, {"otsu": spread(0.3)}, images=NAMES, name="mDice", words={}) == []
    assert not_better(values, {"otsu": [math.nan] * 40}, images=NAMES, name="mDice", words={}) == []
    assert not_better([math.nan] * 40, {"otsu": spread(0.3)}, images=NAMES, name="mDice", words={}) == []


@pytest.mark.parametrize(
    ("interval", "images", "said"),
    [
        ((0.7, 0.75), 100, None),
        ((math.nan, math.nan), 100, None),
        ((0.6, 0.75), 100, "0.15 wide on 100 images"),
        ((0.7, 0.71), 2, "2 images can't tell"),
        ((0.7, 0.7), 1, "1 image can't tell"),
    ],
)
def test_few_images_and_wide_intervals_are_said(interval: tuple[float, float], images: int, said: str | None) -> None:
    lines = uncertain(interval, n_images=images, name="mDice")
    assert lines == [] if said is None else said in lines[0]


FALLING = [(epoch, 1 / epoch) for epoch in range(1, 9)]


@pytest.mark.parametrize(
    ("losses", "values", "said"),
    [
        (FALLING, [0.5, 0.7, 0.8, 0.7, 0.65, 0.66, 0.64, 0.65], True),
        (FALLING, [0.5, 0.7, 0.8, 0.79, 0.81, 0.8, 0.82, 0.81], False),  # still rising
        (FALLING, [0.5, 0.7, 0.8, 0.7, 0.81, 0.6], False),  # one bad epoch is chance
        ([(epoch, 0.5) for epoch in range(1, 9)], [0.8, 0.7, 0.6, 0.6, 0.6], False),  # the training stands still too
        (FALLING, [0.8], False),
        (FALLING, [], False),
        ([], [0.8, 0.7, 0.6, 0.5], False),
    ],
)
def test_train_and_val_that_part_ways_are_told(
    losses: list[tuple[float, float]], values: list[float], said: bool
) -> None:
    lines = parted(losses, list(enumerate(values, 1)), name="mDice")
    assert len(lines) == said
    if said:
        assert "after epoch 3 mDice on val fell from 0.800 to 0.650" in lines[0] and "0.333 to 0.125" in lines[0]


def test_objects_below_the_grid_name_the_frame_and_the_tile_that_would_do() -> None:
    def told(*sides: float, image_size: int, tiled: bool = True) -> list[str]:
        return too_small([(1000 * side, 1000) for side in sides], image_size=image_size, tiled=tiled)

    assert told(0.08, 0.1, 0.2, image_size=256) == []
    (line,) = told(0.03, 0.03, 0.5, image_size=256)  # 1.9 cells
    assert "1.9 x 1.9 of the 64 x 64 cells" in line
    assert "model.image_size=544 or data.tiles.size=480 would do" in line  # 30 of 480 px are 4.0 cells
    (line,) = told(0.03, 0.03, 0.5, image_size=256, tiled=False)
    assert "model.image_size=544 would do" in line and "tiles" not in line
    assert told(0.03, 0.03, 0.5, image_size=544) == []
    assert told(image_size=256) == []
    (line,) = too_small([(10, 5000)], image_size=256)
    assert line.endswith("Dice: data.tiles.size=160 would do.")
    (line,) = too_small([(2, 5000)], image_size=256)
    assert "no model.image_size would do (up to 4096)" in line and "tiles" not in line
