"""What the three maps show, and that a watershed on them tells objects apart that touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from object_maps import discs
from torch import Tensor

from samtune.metrics.instances import match, numbers
from samtune.tasks.instances.separate import MAPS, crops, maps_dice_bce, separate, targets_of, trivial_instances
from samtune.types import Batch


def batch_of(labels: np.ndarray, size: tuple[int, int]) -> Batch:
    """A batch of one picture of a size, whose frame has that of the labels."""
    images = torch.zeros(1, 3, *labels.shape, dtype=torch.uint8)
    return Batch(images, torch.from_numpy(labels)[None, None], (size,), ("a",))


def maps_of(labels: np.ndarray) -> Tensor:
    return targets_of(batch_of(labels, labels.shape))[0]


def test_the_maps_of_a_square() -> None:
    labels = np.zeros((7, 9), dtype=np.int32)
    labels[1:6, 2:7] = 5
    foreground, boundary, centre = maps_of(labels)
    assert foreground.sum() == 25
    # the outermost pixels of the square and those beside them, but for the four corners outside: 16 + 24
    assert boundary.sum() == 16 + 24
    assert float(centre[3, 4]) == 1.0
    assert float(centre[3, 5]) == pytest.approx(1 - 1 / (np.sqrt(8) + 1))
    assert float(centre[1, 2]) == pytest.approx(1 / (np.sqrt(8) + 1))  # a corner is farthest
    assert bool(((centre > 0) == (foreground > 0)).all())


def test_objects_that_touch_have_a_boundary_between_them() -> None:
    labels = np.zeros((6, 10), dtype=np.int32)
    labels[:, :5], labels[:, 5:] = 1, 2
    foreground, boundary, centre = maps_of(labels)
    assert foreground.all()
    assert boundary[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert (centre == 1).sum() == 2


def test_an_object_that_leaves_the_picture_has_no_boundary_there() -> None:
    labels = np.zeros((6, 6), dtype=np.int32)
    labels[:, :3] = 1
    maps = targets_of(batch_of(labels, (6, 3)))[0]
    assert not maps[1].any() and maps[0].sum() == 18 and not maps[:, :, 3:].any()


def test_true_maps_give_the_objects_back() -> None:
    truth = discs()
    found = separate(maps_of(truth).numpy())
    assert len(found) == 4
    assert numbers([match(found, truth)])["PQ"] == pytest.approx(1)
    assert found.scores.tolist() == pytest.approx([1, 1, 1, 1])


def test_scores_say_how_sure_it_is() -> None:
    maps = maps_of(discs()).numpy()
    weak = discs() == 3
    maps[0][weak] = 0.6
    found = separate(maps)
    number = int(found.labels[14, 32])
    assert found.scores[number - 1] == pytest.approx(0.6)
    assert sorted(found.scores.tolist()) == pytest.approx([0.6, 1, 1, 1])


def test_a_picture_of_nothing() -> None:
    for value in (0.0, 0.4):
        found = separate(np.full((3, 20, 30), value, dtype=np.float32))
        assert len(found) == 0 and not found.labels.any() and found.scores.shape == (0,)
    everywhere = separate(np.stack([np.ones((20, 30)), np.zeros((20, 30)), np.full((20, 30), 0.7)]).astype(np.float32))
    assert len(everywhere) == 1 and (everywhere.labels == 1).all()


def test_an_object_whose_pixels_touch_at_corners_stays_whole() -> None:
    maps = np.zeros((3, 8, 8), dtype=np.float32)
    maps[0], maps[2] = np.eye(8), np.eye(8) * np.linspace(0.2, 1, 8)
    found = separate(maps)
    assert len(found) == 1
    np.testing.assert_array_equal(found.labels, np.eye(8))


def test_crops_are_the_objects() -> None:
    labels = discs()
    whole = np.zeros_like(labels)
    for number, place, mask in crops(labels):
        whole[place][mask] = number
    np.testing.assert_array_equal(whole, labels)


def test_the_answer_without_a_model() -> None:
    image = np.full((40, 48, 3), 20, dtype=np.uint8)
    image[discs() > 0] = 220
    answers = trivial_instances(image)
    assert numbers([match(answers["watershed_bright"], discs())])["PQ"] > 0.9
    assert numbers([match(answers["watershed_dark"], discs())])["PQ"] < 0.1


def test_the_loss_of_the_maps_by_hand() -> None:
    labels = np.zeros((4, 4), dtype=np.int32)
    labels[:2, :2] = 3
    batch = batch_of(labels, (4, 2))  # the right half is padding
    zero = torch.zeros(1, len(MAPS), 4, 4)
    target = maps_of(labels[:, :2])
    dice = [1 - (2 * 0.5 * float(t.sum()) + 1) / (4 + float(t.sum()) + 1) for t in target]
    assert float(maps_dice_bce(zero, batch)) == pytest.approx(np.mean(dice) + np.log(2), abs=1e-5)
    assert float(maps_dice_bce(zero, batch, dice_weight=0)) == pytest.approx(np.log(2), abs=1e-5)
    noise = zero.clone()
    noise[..., 2:] = 50.0
    assert float(maps_dice_bce(noise, batch)) == pytest.approx(np.mean(dice) + np.log(2), abs=1e-5)


def test_right_maps_cost_hardly_anything() -> None:
    labels = discs()[:40, :40]
    batch, target = batch_of(labels, (40, 40)), maps_of(labels)[None]
    logits = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    entropy = torch.nn.functional.binary_cross_entropy(target, target)
    assert float(maps_dice_bce(logits, batch, dice_weight=0)) == pytest.approx(float(entropy), abs=1e-3)
    assert float(maps_dice_bce(-logits, batch)) > 2
