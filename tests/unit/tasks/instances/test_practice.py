"""Prompts that are drawn, clicks that correct, and what is learnt from the answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import SIZE, toy_batch, toy_model

from samtune.models.sam.model import SamModel
from samtune.tasks.instances.prompts.practice import (
    Answers,
    PromptPractice,
    asked,
    correction,
    draw_objects,
    practice_loss,
    reached,
)
from samtune.types import Batch


@pytest.fixture
def model() -> SamModel:
    toy = toy_model()
    toy.add_classes(3)
    toy.keeps_prompts = False
    return toy


def objects_batch() -> Batch:
    """Two pictures: three squares in the first, none in the second."""
    batch = toy_batch()
    masks = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.int32)
    masks[0, 0, 4:16, 4:16], masks[0, 0, 20:40, 8:28], masks[0, 0, 4:12, 30:44] = 3, 8, 9
    return replace(batch, masks=masks)


def test_objects_are_drawn_with_prompts_inside_them() -> None:
    torch.manual_seed(0)
    drawn = draw_objects(objects_batch().masks, 8)
    assert drawn.which.tolist() == [0, 0, 0]
    areas = sorted(drawn.objects.flatten(1).sum(1).tolist())
    assert areas == [8 * 14, 12 * 12, 20 * 20]
    for mask, box, point in zip(drawn.objects[:, 0], drawn.boxes, drawn.points[:, 0], strict=True):
        x, y = point.long().tolist()
        assert mask[y, x]
        rows, columns = np.nonzero(mask.numpy())
        tight = torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()])
        assert (box - tight).abs().max() <= 20 / 1024 * SIZE + 1e-4  # jitter
    few = draw_objects(objects_batch().masks, 2)
    assert len(few.which) == 2


def test_nothing_to_draw() -> None:
    drawn = draw_objects(torch.zeros(2, 1, 16, 16, dtype=torch.int32), 4)
    assert drawn.objects.shape == (0, 1, 16, 16) and drawn.boxes.shape == (0, 4) and drawn.points.shape == (0, 1, 2)


def test_clicks_correct_what_is_wrong() -> None:
    target = torch.zeros(3, 1, 4, 4)
    target[:, 0, 1:3, 1:3] = 1.0
    low = torch.where(target > 0, 5.0, -5.0)
    low[0, 0, 1, 1] = -5.0  # missed
    low[1, 0, 0, 3] = 5.0  # too much
    points, signs = correction(low, target, torch.ones_like(target), 16)
    assert points[0, 0].tolist() == [1 * 4 + 1.5, 1 * 4 + 1.5] and points[1, 0].tolist() == [3 * 4 + 1.5, 1.5]
    assert signs[:2, 0].tolist() == [1, 0]
    x, y = points[2, 0].tolist()
    assert 4 <= x < 12 and 4 <= y < 12 and signs[2, 0] == 1  # all is right: a click on the object


def test_reached_ious() -> None:
    target = torch.zeros(1, 1, 2, 2)
    target[0, 0, 0] = 1.0
    low = torch.tensor([[[[1.0, 1], [-1, -1]], [[1, -1], [1, -1]], [[-1, -1], [-1, -1]]]])
    assert reached(low, target, torch.ones_like(target))[0].tolist() == pytest.approx([1, 1 / 3, 0])


def test_what_is_found_in_the_padding_is_not_wrong() -> None:
    """No click goes there, and the IoU is that of the picture: its left half."""
    target, valid = torch.zeros(20, 1, 4, 4), torch.zeros(20, 1, 4, 4)
    target[:, 0, 1:3, 0], valid[..., :2] = 1.0, 1.0
    low = torch.where(target > 0, 5.0, -5.0)
    low[..., 2:] = 5.0
    torch.manual_seed(0)
    points, signs = correction(low, target, valid, 16)
    assert bool((points[..., 0] < 4).all()) and bool((signs == 1).all())  # all is right: clicks on the object
    assert reached(low, target, valid).unique().tolist() == [1]


def test_prompts_with_signs() -> None:
    points = torch.zeros(2, 3, 2)
    assert asked(None, points).labels is not None
    labels = asked(None, points, torch.tensor([[0], [1]])).labels
    assert labels is not None and labels.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert asked(torch.zeros(2, 4), None).points_input is None


def answers(low: Tensor, expected: Tensor, *, ambiguous: bool) -> Answers:
    target = torch.zeros(len(low), 1, 4, 4)
    target[:, 0, :2] = 1.0
    return Answers(low, expected, target, torch.ones_like(target), ambiguous)


def test_the_loss_of_right_and_wrong_answers() -> None:
    right = torch.full((1, 4, 4, 4), -20.0)
    right[:, :, :2] = 20.0
    assert float(practice_loss([answers(right, torch.ones(1, 4), ambiguous=False)], 1.0)) == pytest.approx(0, abs=1e-4)
    sure = [answers(right, torch.zeros(1, 4), ambiguous=False)]
    assert float(practice_loss(sure, 1.0)) == pytest.approx(1, abs=1e-4)  # the head expects 0 of 1
    assert float(practice_loss(sure, 0.5)) == pytest.approx(0.5, abs=1e-4)
    assert practice_loss([], 1.0) == 0.0


def test_after_one_click_the_best_of_three_counts_too() -> None:
    low = torch.full((1, 4, 4, 4), -20.0)
    low[:, 0, :2] = 20.0
    low[:, 2, :2] = 20.0  # of the three others, one is right
    expected = torch.tensor([[1.0, 0, 1, 0]])
    assert float(practice_loss([answers(low, expected, ambiguous=True)], 1.0)) == pytest.approx(0, abs=1e-4)
    low[:, 2] = -20.0
    expected = torch.tensor([[1.0, 0, 0, 0]])
    assert float(practice_loss([answers(low, expected, ambiguous=True)], 1.0)) > 5
    assert float(practice_loss([answers(low, expected, ambiguous=False)], 1.0)) == pytest.approx(0, abs=1e-4)


def test_one_embedding_serves_all_prompts(model: SamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = model.encode

    def counted(pixels: Tensor) -> Tensor:
        seen.append(tuple(pixels.shape))
        return encode(pixels)

    monkeypatch.setattr(model, "encode", counted)
    network = PromptPractice(model, objects=3).train()
    maps, rounds = network(objects_batch())
    assert seen == [(2, 3, SIZE, SIZE)]
    assert maps.shape == (2, 3, SIZE // 4, SIZE // 4)
    # of three objects one is boxed, two are clicked; each is then corrected
    assert [len(one.low) for one in rounds] == [1, 1, 2, 2]
    assert [one.ambiguous for one in rounds] == [False, False, True, False]


def test_everything_that_answers_gets_a_gradient(model: SamModel) -> None:
    network = PromptPractice(model, objects=3).train()
    maps, rounds = network(objects_batch())
    (maps.square().mean() + practice_loss(rounds, 1.0)).backward()
    decoder = model.net.mask_decoder
    for part in (decoder.iou_prediction_head, decoder.output_hypernetworks_mlps[0], decoder.classes, decoder.iou_token):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    roles = model.roles()
    assert roles["mask_decoder.iou_token.weight"] == "decoder"


def test_in_evaluation_it_is_the_model(model: SamModel) -> None:
    network = PromptPractice(model, objects=3).eval()
    batch = objects_batch()
    with torch.no_grad():
        torch.testing.assert_close(network(batch), model(batch))


def test_pictures_without_objects_train_the_maps_alone(model: SamModel) -> None:
    batch = replace(objects_batch(), masks=torch.zeros(2, 1, SIZE, SIZE, dtype=torch.int32))
    _, rounds = PromptPractice(model, objects=3).train()(batch)
    assert rounds == []
