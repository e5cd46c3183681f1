"""Components, boxes and points that are drawn from a mask, and boxes that a user gives."""

from __future__ import annotations

import numpy as np
import pytest

from samtune.tasks.prompts import PromptError, box_of, clip_boxes, components, point_in


def scene(*rectangles: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((60, 80), dtype=bool)
    for x0, y0, x1, y1 in rectangles:
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def test_components_partition_the_mask_without_specks() -> None:
    big, second, speck = (5, 5, 20, 20), (40, 30, 50, 50), (70, 2, 71, 3)
    parts = components(scene(big, second, speck))
    assert [p.sum() for p in parts] == [16 * 16, 11 * 21]
    np.testing.assert_array_equal(parts[0] | parts[1], scene(big, second))


def test_only_specks_keeps_the_largest_and_empty_gives_none() -> None:
    parts = components(scene((1, 1, 1, 1), (10, 10, 12, 11)))
    assert [p.sum() for p in parts] == [6]
    assert components(scene()) == []


def test_diagonal_neighbours_are_one_component() -> None:
    assert len(components(scene((5, 5, 10, 10), (11, 11, 16, 16)))) == 1


def test_box_is_tight_and_inclusive() -> None:
    assert box_of(scene((7, 9, 20, 30))).tolist() == [7, 9, 20, 30]


def test_jittered_boxes_stay_near_and_inside() -> None:
    mask = scene((0, 0, 60, 50))
    tight = box_of(mask)
    limit = 20 / 1024 * 80
    boxes = np.stack([box_of(mask, rng=np.random.default_rng(i)) for i in range(50)])
    assert boxes.dtype == np.float32 and len(np.unique(boxes, axis=0)) > 30
    assert np.abs(boxes - tight).max() == pytest.approx(limit, abs=1e-5)  # of the longer side, 80
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 79 and boxes[:, 3].max() <= 59
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_point_is_the_deepest_pixel() -> None:
    x, y = point_in(scene((10, 10, 30, 20), (50, 10, 50, 40)))
    assert y == 15 and 15 <= x <= 25


def test_point_at_the_border_of_the_picture_is_pulled_inside() -> None:
    x, y = point_in(np.ones((60, 80), dtype=bool))
    assert 28 <= y <= 31 and 28 <= x <= 51


def test_random_points_are_inside_and_off_the_edge() -> None:
    mask = scene((10, 10, 30, 20))
    points = np.stack([point_in(mask, rng=np.random.default_rng(i)) for i in range(60)]).astype(int)
    assert mask[points[:, 1], points[:, 0]].all() and len(np.unique(points, axis=0)) > 30
    assert (points.min(axis=0) > [10, 10]).all() and (points.max(axis=0) < [30, 20]).all()


def test_single_pixel_mask_has_a_box_and_a_point() -> None:
    mask = scene((3, 4, 3, 4))
    rng = np.random.default_rng(0)
    assert box_of(mask).tolist() == [3, 4, 3, 4]
    assert point_in(mask, rng=rng).tolist() == [3, 4] == point_in(mask).tolist()


def test_boxes_are_cut_to_a_picture_that_is_not_square() -> None:
    size = 50, 80  # H, W
    boxes = np.array([[-5.0, -7, 200, 300], [60, 10, 90, 40], [10, 30, 20, 70], [3, 4, 5, 6]])
    assert clip_boxes(boxes, size).tolist() == [[0, 0, 80, 50], [60, 10, 80, 40], [10, 30, 20, 50], [3, 4, 5, 6]]
    with pytest.raises(PromptError, match="box 1 is outside the image of 80 x 50 pixels"):
        clip_boxes(np.array([[0.0, 0, 9, 9], [10, 55, 20, 70]]), size)
