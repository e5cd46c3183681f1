"""Answers without a model on pictures where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samtune.metrics.overlap import dice
from samtune.metrics.trivial import TRIVIAL, TrivialMasks, mean_mask, most_frequent
from samtune.types import Batch, Prompts

HEIGHT, WIDTH, SIDE = 30, 60, 64


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


OBJECT = square(10, 5, 30, 25)


def batch_of(truth: np.ndarray, *, object_is_bright: bool = True, prompts: Prompts | None = None) -> Batch:
    """A picture of 60 x 30, in a frame of 64: its padding is black, which is no part of it."""
    values = np.where(OBJECT if object_is_bright else ~OBJECT, 200, 50).astype(np.uint8)
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    images[0, :, :HEIGHT, :WIDTH] = torch.from_numpy(values)
    return Batch(images, torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool), ((HEIGHT, WIDTH),), ("a",), (truth,), prompts)


def answered(batch: Batch, mean: np.ndarray | None = None) -> dict[str, list[float]]:
    answers = TrivialMasks(mean)
    answers.add(batch)
    assert answers.dice.keys() <= TRIVIAL.keys()
    return answers.dice


@pytest.mark.parametrize("bright", [True, False])
def test_otsu_finds_the_object_in_one_polarity(bright: bool) -> None:
    found = answered(batch_of(OBJECT, object_is_bright=bright))
    right, wrong = ("otsu_bright", "otsu_dark") if bright else ("otsu_dark", "otsu_bright")
    assert (found[right], found[wrong]) == ([1.0], [0.0])
    assert found["all_foreground"] == [pytest.approx(dice(np.ones_like(OBJECT), OBJECT))]
    assert "mean_mask" not in found


def test_answers_are_measured_at_the_original_size() -> None:
    large = OBJECT.repeat(3, axis=0).repeat(3, axis=1)
    assert answered(batch_of(large))["otsu_bright"] == [1.0]


def test_the_mean_mask_is_what_most_training_masks_share() -> None:
    masks = [square(10 + shift, 5, 30 + shift, 25) for shift in (-2, 0, 2)]
    mean = mean_mask([*masks, masks[1].repeat(2, axis=0).repeat(2, axis=1)])  # of another size
    assert mean is not None and mean.shape == (64, 64)
    (found,) = answered(batch_of(OBJECT), mean)["mean_mask"]
    assert found > 0.9
    assert mean_mask([]) is None
    assert mean_mask([np.zeros((9, 9), dtype=bool)] * 2) is None


def test_a_mean_of_rare_places_still_answers() -> None:
    masks = [square(x, 5, x + 20, 25) for x in (0, 10, 20, 30, 40)]  # no place is foreground in half of them
    mean = mean_mask(masks)
    assert mean is not None and mean.any()


def test_prompted_objects_are_answered_by_their_prompt() -> None:
    box = Prompts(boxes_input=torch.tensor([[10.0, 5.0, 29.0, 24.0]]))
    found = answered(batch_of(OBJECT, prompts=box))
    assert found["whole_box"] == [1.0] and set(found) == {"whole_box", "otsu_bright", "otsu_dark"}
    click = Prompts(points_input=torch.tensor([[[15.0, 10.0]]]), labels=torch.ones(1, 1, dtype=torch.int64))
    assert answered(batch_of(OBJECT, object_is_bright=False, prompts=click)) == {"otsu_click": [1.0]}


def test_a_box_larger_than_the_object_is_cut_by_brightness() -> None:
    box = Prompts(boxes_input=torch.tensor([[2.0, 0.0, 45.0, 29.0]]))
    found = answered(batch_of(OBJECT, prompts=box))
    assert found["otsu_bright"] == [1.0] and found["whole_box"][0] < 0.6


def test_the_most_frequent_class_of_train_answers_test() -> None:
    assert most_frequent([2, 0, 2, 1], [1, 2, 2]) == [1.0, 0.0, 1.0, 0.0]
