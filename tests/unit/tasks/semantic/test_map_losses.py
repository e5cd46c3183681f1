"""Dice + cross-entropy of classes: against plain sums, and what never counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_model

from samtune.scoring.contrastive import pixel_contrastive
from samtune.tasks.pixels import coverage, object_loss
from samtune.tasks.semantic.losses import BoxPractice, dice_ce, draw_objects
from samtune.types import IGNORE, Batch

SIZE = 32


def boxed_loss(low: Tensor, objects: Tensor, batch: Batch) -> Tensor:
    return object_loss(low, *coverage(objects, batch.valid(), low.shape[-1])).mean()


def batch_of(masks: Tensor) -> Batch:
    """A batch of maps, (B, S, S), whose pictures fill the frame."""
    count, side = len(masks), masks.shape[-1]
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    return Batch(images, masks[:, None].to(torch.uint8), ((side, side),) * count, tuple(map(str, range(count))))


def random_maps(classes: int, *, count: int = 2) -> Tensor:
    return torch.randint(0, classes, (count, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def test_it_is_the_sum_of_its_terms() -> None:
    maps = random_maps(3)
    maps[0][maps[0] == 2] = 0  # the first image shows two classes
    maps[1, :4] = IGNORE
    logits = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    dices, entropies = [], []
    for item in range(2):
        counted = maps[item] != IGNORE
        p, t = logits[item].softmax(0)[:, counted], maps[item][counted]
        shown = [c for c in range(3) if (t == c).any()]
        dice = [1 - (2 * p[c][t == c].sum() + 1) / (p[c].sum() + (t == c).sum() + 1) for c in shown]
        dices.append(torch.stack(dice).mean())
        entropies.append(-p.log()[t, torch.arange(len(t))].mean())
    batch = batch_of(maps)
    assert torch.allclose(dice_ce(logits, batch, ce_weight=0), torch.stack(dices).mean(), atol=1e-5)
    assert torch.allclose(dice_ce(logits, batch, dice_weight=0), torch.stack(entropies).mean(), atol=1e-5)


def test_ignored_pixels_have_no_gradient() -> None:
    maps = random_maps(3)
    maps[:, 10:20] = IGNORE
    logits = torch.randn(2, 3, SIZE, SIZE, requires_grad=True)
    dice_ce(logits, batch_of(maps)).backward()
    assert logits.grad is not None
    assert bool((logits.grad[:, :, 10:20] == 0).all()) and bool((logits.grad[:, :, :10] != 0).any())


def test_an_image_without_a_counted_pixel_adds_nothing() -> None:
    logits = torch.randn(1, 3, SIZE, SIZE)
    assert float(dice_ce(logits, batch_of(torch.full((1, SIZE, SIZE), IGNORE)))) == 0


def test_parts_of_a_batch_have_the_mean_of_its_images() -> None:
    """What memory-saving parts and several processes rely on."""
    batch, logits = batch_of(random_maps(4)), torch.randn(2, 4, SIZE, SIZE)
    parts = [dice_ce(logits[i : i + 1], part) for i, part in enumerate(batch.split(1))]
    assert torch.allclose(dice_ce(logits, batch), torch.stack(parts).mean(), atol=1e-6)


def contrast(embeddings: Tensor, batch: Batch, *, cells: int = 16) -> Tensor | None:
    generator = torch.Generator().manual_seed(0)
    return pixel_contrastive(embeddings, batch, cells=cells, temperature=0.1, generator=generator)


def test_contrast_pulls_cells_of_a_class_together() -> None:
    """Four quarters of four classes: embeddings that tell them apart cost less than those that don't."""
    half = torch.tensor([[0, 1], [2, 3]])
    batch = batch_of(half.repeat_interleave(32, 0).repeat_interleave(32, 1)[None])
    cells = half.repeat_interleave(2, 0).repeat_interleave(2, 1)
    told = torch.nn.functional.one_hot(cells, 4).permute(2, 0, 1)[None].float()
    alike, right = contrast(torch.ones(1, 4, 4, 4), batch), contrast(told, batch)
    assert alike is not None and float(alike) == pytest.approx(math.log(15), abs=1e-3)  # of 16 cells, all alike
    assert right is not None and float(right) == pytest.approx(math.log(3), abs=1e-3)  # of the three of its class


def test_cells_that_do_not_count_are_not_drawn() -> None:
    maps = torch.full((1, 64, 64), IGNORE)
    assert contrast(torch.randn(1, 8, 4, 4), batch_of(maps)) is None
    maps[:, :16, :32] = 1  # two cells of one class
    assert contrast(torch.randn(1, 8, 4, 4), batch_of(maps)) == pytest.approx(0)


def test_practice_draws_a_region_of_a_class_with_its_box() -> None:
    maps = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.uint8)
    maps[0, 0, 4:12, 6:20] = 1
    maps[1] = IGNORE
    maps[2, 0, :, 20:], maps[2, 0, :, :20] = 2, IGNORE
    boxes, objects = draw_objects(maps)
    assert boxes.shape == (3, 4) and objects.shape == (3, 1, SIZE, SIZE)
    assert len(maps[0, 0][objects[0, 0]].unique()) == 1
    assert not objects[1].any() and boxes[1].tolist() == [0, 0, SIZE - 1, SIZE - 1]
    assert torch.equal(objects[2, 0], maps[2, 0] == 2) and abs(float(boxes[2, 0]) - 20) <= 2


def test_practice_shares_the_embeddings_and_is_for_training_only() -> None:
    model = toy_model()
    model.add_classes(3)
    batch, practice = toy_batch(), BoxPractice(model, model.embed)
    batch = replace(batch, masks=batch.masks.to(torch.uint8))
    practice.eval()
    alone = practice(batch)
    assert torch.equal(alone, model(batch))
    practice.train()
    classes, boxed, objects = practice(batch)
    assert torch.allclose(classes, alone, atol=1e-6) and boxed.shape == (2, 1, 16, 16)
    boxed_loss(boxed, objects, batch).backward()
    assert model.net.mask_decoder.mask_tokens.weight.grad is not None  # by the tokens that prompts are answered with


def test_the_loss_of_boxes_is_of_the_covered_share() -> None:
    batch = batch_of(torch.zeros(2, SIZE, SIZE))
    objects = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    objects[0, 0, :16] = True
    low = torch.where(torch.arange(8)[:, None] < 4, 9.0, -9.0).expand(2, 1, 8, 8)
    assert float(boxed_loss(low, objects, batch)) < 0.01  # right, and the empty item adds nothing
    assert float(boxed_loss(-low, objects, batch)) > 4
