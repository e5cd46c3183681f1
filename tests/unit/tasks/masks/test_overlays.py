from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from samtune.errors import DiskError
from samtune.tasks.masks.draw import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    NO_MARKS,
    PREDICTION,
    PROMPT,
    TRUE_POSITIVE,
    TRUTH,
    Marks,
    overlay_row,
    save_overlays,
)
from samtune.tasks.panels import PANEL, pick_cases

IMAGE = np.full((128, 160, 3), 128, dtype=np.uint8)
LEFT = np.zeros((128, 160), dtype=bool)
LEFT[30:90, 20:80] = True
RIGHT = np.roll(LEFT, 40, axis=1)


def values(*dices: float) -> dict[str, float]:
    return {f"i{k}": dice for k, dice in enumerate(dices)}


def has_colour(panel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(panel.astype(int) - colour).max(axis=-1) <= 8).any())


def test_best_median_and_worst_do_not_overlap() -> None:
    cases = pick_cases(values(*(k / 10 for k in range(10))), each=2)
    assert cases == [
        ("best", "i9"), ("best", "i8"), ("median", "i5"), ("median", "i4"), ("worst", "i1"), ("worst", "i0"),
    ]  # fmt: skip


@pytest.mark.parametrize("count", range(13))
def test_short_reports_show_each_image_once(count: int) -> None:
    names = [name for _, name in pick_cases(values(*np.linspace(0, 1, count)))]
    assert len(names) == len(set(names)) <= 9
    assert len(names) >= min(count, 3)


def test_undefined_dice_is_left_out_and_ties_go_by_name() -> None:
    assert pick_cases(values(math.nan, 0.5, 0.5, 0.5)) == [("best", "i1"), ("median", "i2"), ("worst", "i3")]


def test_four_panels_with_their_colours() -> None:
    row = overlay_row(IMAGE, LEFT, RIGHT)
    assert row.dtype == np.uint8 and row.ndim == 3
    width = (row.shape[1] - 3 * 4) // 4
    assert row.shape[0] == PANEL[0] + 26 and width == 320
    image, truth, prediction, errors = (row[26:, k * (width + 4) : k * (width + 4) + width] for k in range(4))
    assert (image == 128).all()
    assert has_colour(truth, TRUTH) and not has_colour(truth, PREDICTION)
    assert has_colour(prediction, PREDICTION) and not has_colour(prediction, TRUTH)
    background = 0.35 * 0.6 * 128
    for colour in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE):
        assert has_colour(errors, tuple(background + 0.65 * c for c in colour))


def test_errors_are_where_they_belong() -> None:
    row = overlay_row(IMAGE, LEFT, RIGHT)
    errors = row[26:, -320:]
    centre = errors[120]  # one line through both squares; the picture is shown at twice its size
    for column, colour in ((40 * 2 - 20, FALSE_NEGATIVE), (70 * 2, TRUE_POSITIVE), (100 * 2, FALSE_POSITIVE)):
        assert np.argmax(centre[column]) == np.argmax(colour)
    assert len(set(centre[10])) == 1  # grey outside


@pytest.mark.parametrize("marks", [Marks(boxes=[[20, 30, 79, 89]]), Marks(points=[[50, 60]])])
def test_the_prompt_is_drawn_where_it_was_given(marks: Marks) -> None:
    shown, plain = overlay_row(IMAGE, LEFT, LEFT, marks)[26:, :320], overlay_row(IMAGE, LEFT, LEFT)[26:, :320]
    assert has_colour(shown, PROMPT) and not has_colour(plain, PROMPT)
    rows, columns = np.nonzero((shown != plain).any(axis=-1))
    centre = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    assert np.allclose(centre, (120, 100), atol=2)  # at twice the size
    wide = columns.max() - columns.min()
    assert wide == pytest.approx(118, abs=8) if marks.boxes else wide < 20


def test_without_truth_there_are_two_panels() -> None:
    assert overlay_row(IMAGE, None, LEFT).shape == (PANEL[0] + 26, 2 * 320 + 4, 3)


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (4, 3), (2000, 1000)])
def test_any_shape_of_image(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, dtype=bool)
    row = overlay_row(np.zeros((*shape, 3), dtype=np.uint8), mask, ~mask)
    assert row.shape[0] <= PANEL[0] + 26 and row.shape[1] <= 4 * (PANEL[1] + 4)


def test_masks_must_fit_the_image() -> None:
    with pytest.raises(ValueError, match=r"truth has \(127, 160\) pixels and the image has \(128, 160\)"):
        overlay_row(IMAGE, LEFT[1:], LEFT)
    with pytest.raises(ValueError, match="the prediction has"):
        overlay_row(IMAGE, None, LEFT[1:])


def test_files_hold_the_rows_in_rgb(tmp_path: Path) -> None:
    red = np.zeros_like(IMAGE)
    red[..., 0] = 200
    paths = save_overlays(
        tmp_path / "overlays", [("a/b c#1", red, LEFT, RIGHT, NO_MARKS), ("x", red, None, LEFT, NO_MARKS)]
    )
    assert [path.name for path in paths] == ["a_b_c#1.png", "x.png"]
    written = cv2.imread(str(paths[0]))[..., ::-1]
    np.testing.assert_array_equal(written, overlay_row(red, LEFT, RIGHT))


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"can't write to .*x\.png: .*Choose a writable folder"):
        save_overlays(tmp_path / "file", [("x", IMAGE, None, LEFT, NO_MARKS)])
