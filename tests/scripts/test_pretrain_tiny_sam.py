"""The parts of the pre-training script that its numbers hang on."""

from __future__ import annotations

import pytest
import torch
from pretrain_tiny_sam import box_answers, boxes_of, dice, distances, draw_targets, mask_loss, points_in


@pytest.fixture
def instances() -> torch.Tensor:
    picture = torch.zeros(2, 64, 64, dtype=torch.uint8)
    picture[0, 8:24, 16:40] = 1
    picture[0, 40:60, 4:20] = 2
    picture[1, 30:50, 30:62] = 1
    return picture


def test_boxes_are_tight(instances: torch.Tensor) -> None:
    assert boxes_of(instances == 1).tolist() == [[16, 8, 40, 24], [30, 30, 62, 50]]


def test_points_lie_inside(instances: torch.Tensor) -> None:
    masks = instances == 1
    for seed in range(20):
        points = points_in(masks, torch.Generator().manual_seed(seed))[:, 0].long()
        assert all(masks[i, y, x] for i, (x, y) in enumerate(points.tolist()))


@pytest.mark.parametrize("kind", ["box", "point", "none"])
def test_targets_are_whole_objects(instances: torch.Tensor, kind: str) -> None:
    targets = draw_targets(instances, kind, 1 if kind == "none" else 3, torch.Generator().manual_seed(0))
    areas = targets.masks.sum(dim=(1, 2)).tolist()
    allowed = {"none": [[16 * 24 + 20 * 16, 20 * 32]]}.get(kind)
    if allowed:
        assert areas == allowed[0]
    else:
        assert set(areas[:3]) <= {16 * 24, 20 * 16} and set(areas[3:]) == {20 * 32}


def test_trivial_answers(instances: torch.Tensor) -> None:
    masks = instances == 1
    filled, ellipse = box_answers(boxes_of(masks), 64)
    assert dice(filled, masks).tolist() == [1.0, 1.0]
    assert dice(ellipse, masks).mean().item() == pytest.approx(2 * (torch.pi / 4) / (1 + torch.pi / 4), abs=0.02)
    assert distances(torch.tensor([[3.0, 4.0]]), 8)[0, 0, 0].item() == 5.0


def test_loss_falls_towards_the_mask(instances: torch.Tensor) -> None:
    masks = instances == 1
    right = torch.nn.functional.avg_pool2d(masks[:, None].float(), 4) * 20 - 10
    assert mask_loss(right, masks) < 0.3 < mask_loss(torch.zeros_like(right), masks) < mask_loss(-right, masks)


def test_dice_of_two_empty_masks_is_one() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert dice(empty, empty).tolist() == [1.0]
    assert dice(~empty, empty).tolist() == [0.0]
