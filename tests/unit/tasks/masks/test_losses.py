"""Losses against their formulas, computed the slow way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy import toy_batch

from samtune.scoring.contrastive import pixel_contrastive, supervised_contrastive
from samtune.tasks.masks.losses import LOSSES, dice_bce
from samtune.types import Batch, Size


def naive_contrastive(features: Tensor, labels: list[int], temperature: float) -> float:
    """Eq. 2 of the paper, sum by sum."""
    z = [feature / feature.norm() for feature in features.double()]
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        logs = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in positives]
        anchors.append(-sum(logs) / len(positives))
    return sum(anchors) / len(anchors)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 2, 3], [0, 0]])
def test_supervised_contrastive_equals_the_paper(labels: list[int], temperature: float) -> None:
    features = torch.randn(len(labels), 8) * 3
    loss = supervised_contrastive(features, torch.tensor(labels), temperature=temperature)
    assert loss is not None and loss.dtype == torch.float32
    assert float(loss) == pytest.approx(naive_contrastive(features, labels, temperature), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("labels", [[], [0], [0, 1], [3, 1, 2]])
def test_supervised_contrastive_is_undefined_without_a_pair(labels: list[int]) -> None:
    features = torch.randn(len(labels), 8)
    assert supervised_contrastive(features, torch.tensor(labels, dtype=torch.int64), temperature=0.1) is None


def test_supervised_contrastive_is_finite_for_extreme_features() -> None:
    features = torch.cat([torch.zeros(2, 8), torch.full((2, 8), 1e4)]).requires_grad_()
    loss = supervised_contrastive(features, torch.tensor([0, 1, 0, 1]), temperature=0.01)
    loss.backward()
    assert bool(loss.isfinite()) and bool(features.grad.isfinite().all())


def test_supervised_contrastive_computes_in_fp32() -> None:
    features, labels = torch.randn(6, 8).bfloat16(), torch.tensor([0, 0, 1, 1, 0, 1])
    rounded = supervised_contrastive(features, labels, temperature=0.1)
    assert torch.equal(rounded, supervised_contrastive(features.float(), labels, temperature=0.1))


# --- cells of an embedding: 4 x 4 cells of 16 px


def cell_batch(shares: Tensor, sizes: tuple[Size, ...]) -> Batch:
    """Returns a batch whose cells hold these shares of foreground, (B, 4, 4) in 0..1 of 16 rows."""
    rows = torch.arange(16)[None, None, None, :] < (shares * 16).round()[..., None]  # (B, 4, 4, 16 rows)
    masks = rows[..., None].expand(*rows.shape, 16).permute(0, 1, 3, 2, 4).reshape(len(shares), 1, 64, 64)
    images = torch.zeros(len(shares), 3, 64, 64, dtype=torch.uint8)
    return Batch(images, masks.contiguous(), sizes, tuple("ab"[: len(shares)]))


def drawn_cells(batch: Batch, *, cells: int, seed: int = 0) -> Tensor:
    """Returns (B, 4, 4) bool: the cells that take part in the loss."""
    embeddings = torch.randn(len(batch), 8, 4, 4).requires_grad_()
    loss = pixel_contrastive(
        embeddings, batch, cells=cells, temperature=0.5, generator=torch.Generator().manual_seed(seed)
    )
    assert loss is not None
    loss.backward()
    return embeddings.grad.ne(0).any(1)


def test_pixel_contrastive_is_the_loss_over_all_cells_when_all_are_drawn() -> None:
    shares = (torch.arange(16).view(1, 4, 4) % 2).float()
    embeddings = torch.randn(1, 8, 4, 4)
    loss = pixel_contrastive(
        embeddings, cell_batch(shares, ((64, 64),)), cells=16, temperature=0.1, generator=torch.Generator()
    )
    expected = supervised_contrastive(embeddings[0].flatten(1).T, shares.flatten(), temperature=0.1)
    torch.testing.assert_close(loss, expected)


def test_cells_that_touch_the_padding_are_left_out() -> None:
    shares = (torch.arange(32).view(2, 4, 4) % 2).float()
    drawn = drawn_cells(cell_batch(shares, ((64, 40), (33, 64))), cells=16)
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :, :2] = True  # 40 px wide: the third column of cells is cut
    expected[1, :2] = True  # 33 px high: the third row shows one line of the picture
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(("cells", "boundary", "pure"), [(10, 1, [4, 5]), (20, 2, [5, 5]), (4, 0, [2, 2])])
def test_boundary_cells_are_a_tenth_and_classes_share_the_rest(cells: int, boundary: int, pure: list[int]) -> None:
    """Of 5 foreground, 5 background and 6 boundary cells; 0.8 and 0.2 are still pure."""
    shares = torch.tensor([1.0] * 4 + [0.8125] + [0.0] * 4 + [0.1875] + [0.5] * 3 + [0.25] * 3).view(1, 4, 4)
    drawn = drawn_cells(cell_batch(shares, ((64, 64),)), cells=cells).flatten()
    found = [int(drawn[10:].sum()), int(drawn[:5].sum()), int(drawn[5:10].sum())]
    assert found[0] == boundary
    assert sorted(found[1:]) == pure  # who gets the odd one is up to the draw


def test_pixel_contrastive_draws_the_same_cells_for_the_same_seed() -> None:
    batch = cell_batch((torch.arange(16).view(1, 4, 4) % 2).float(), ((64, 64),))
    first, again, other = (drawn_cells(batch, cells=6, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_image_without_foreground_gives_background_cells() -> None:
    shares = torch.cat([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    drawn = drawn_cells(cell_batch(shares, ((64, 64), (64, 64))), cells=8)
    assert drawn.sum(dim=(1, 2)).tolist() == [8, 8]


@pytest.mark.parametrize("sizes", [((15, 64),), ((16, 16),)], ids=["no whole cell", "one cell"])
def test_pixel_contrastive_is_undefined_without_two_cells(sizes: tuple[Size, ...]) -> None:
    loss = pixel_contrastive(
        torch.randn(1, 8, 4, 4),
        cell_batch(torch.ones(1, 4, 4), sizes),
        cells=8,
        temperature=0.1,
        generator=torch.Generator(),
    )
    assert loss is None


# --- dice_bce


def by_hand(logits: Tensor, batch: Batch, dice_weight: float, bce_weight: float) -> float:
    """Sums over the pixels of each picture, in Python floats."""
    dice = bce = 0.0
    for item, (height, width) in enumerate(batch.sizes_input):
        p = logits[item, 0, :height, :width].double().sigmoid()
        t = batch.masks[item, 0, :height, :width].double()
        dice += 1 - float((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        bce += float(-(t * p.log() + (1 - t) * (1 - p).log()).mean())
    return (dice_weight * dice + bce_weight * bce) / len(batch)


@pytest.mark.parametrize(("dice_weight", "bce_weight"), [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_dice_bce_equals_the_formula(dice_weight: float, bce_weight: float) -> None:
    batch, logits = toy_batch(), torch.randn(2, 1, 64, 64)
    loss = dice_bce(logits, batch, dice_weight=dice_weight, bce_weight=bce_weight)
    assert float(loss) == pytest.approx(by_hand(logits, batch, dice_weight, bce_weight), rel=1e-5)


def test_padding_never_counts() -> None:
    batch = toy_batch()
    logits = torch.randn(2, 1, 64, 64).requires_grad_()
    loss = dice_bce(logits, batch)
    loss.backward()
    assert bool((logits.grad.ne(0) == batch.valid()).all())
    wild = torch.where(batch.valid(), logits.detach(), torch.randn(2, 1, 64, 64) * 100)
    assert torch.equal(dice_bce(wild, batch), loss.detach())
    batch.masks[~batch.valid()] = True  # even where a mask says otherwise
    assert torch.equal(dice_bce(wild, batch), loss.detach())


def test_empty_mask_is_finite_and_falls_with_the_prediction() -> None:
    batch = toy_batch()
    batch.masks[:] = False
    losses = [float(dice_bce(torch.full((2, 1, 64, 64), logit), batch)) for logit in (100.0, 2.0, 0.0, -2.0, -100.0)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses == sorted(losses, reverse=True) and losses[-1] == pytest.approx(0, abs=1e-6)


def test_dice_bce_computes_in_fp32() -> None:
    batch, logits = toy_batch(), torch.randn(2, 1, 64, 64).bfloat16()
    assert torch.equal(dice_bce(logits, batch), dice_bce(logits.float(), batch))
    assert dice_bce(logits, batch).dtype == torch.float32


def test_table_of_losses() -> None:
    assert LOSSES["dice_bce"] is dice_bce
