"""MixUp and CutMix of a batch."""

from __future__ import annotations

import torch

from samtune.tasks.classes.losses import cross_entropy
from samtune.tasks.classes.views import mixer
from samtune.types import LabelledBatch

IMAGES = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
BATCH = LabelledBatch(IMAGES, torch.tensor([0, 2, 1, 2]), ("a", "b", "c", "d"))


def test_both_off_is_no_mixer() -> None:
    assert mixer(mixup=0, cutmix=0, classes=3, seed=0) is None


def test_mixup_blends_pixels_as_it_blends_labels() -> None:
    mix = mixer(mixup=0.8, cutmix=0, classes=3, seed=0)
    shares = set()
    for step in range(5):
        mixed = mix(BATCH, step)
        own = mixed.targets[0, 0]  # image 0 is the only one of its class; its neighbour is image 3, of class 2
        shares.add(float(own))
        assert torch.allclose(mixed.targets[0], torch.tensor([own, 0, 1 - own]))
        torch.testing.assert_close(mixed.images[0], own * IMAGES[0] + (1 - own) * IMAGES[3], atol=1e-3, rtol=0)
        assert mixed.images.dtype == mixed.targets.dtype == torch.float32
        assert mixed.images.min() >= 0 and mixed.images.max() <= 255.001
        assert torch.equal(mixed.labels, BATCH.labels) and mixed.names == BATCH.names
    assert len(shares) == 5 and all(0 <= share <= 1 for share in shares)


def test_cutmix_pastes_as_much_as_the_targets_say() -> None:
    mix = mixer(mixup=0, cutmix=1.0, classes=3, seed=0)
    areas = set()
    for step in range(8):
        mixed = mix(BATCH, step)
        pasted = (mixed.images[0] != IMAGES[0]).any(0)
        assert torch.equal(mixed.images[0][:, pasted], IMAGES[3][:, pasted].float())
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        torch.testing.assert_close(mixed.targets[0, 2], rows * columns / 256)
        areas.add(int(pasted.sum()))
    assert len(areas) > 3


def test_with_both_on_each_batch_gets_one_of_them() -> None:
    mix = mixer(mixup=1.0, cutmix=1.0, classes=3, seed=0)
    whole = [bool((mix(BATCH, step).images % 1 == 0).all()) for step in range(40)]  # CutMix keeps whole numbers
    assert 8 < sum(whole) < 32


def test_the_step_and_the_seed_decide_and_nothing_else_is_drawn() -> None:
    mix, other = (mixer(mixup=0.8, cutmix=1.0, classes=3, seed=seed) for seed in (0, 1))
    before = torch.get_rng_state()
    first = mix(BATCH, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(mix(BATCH, 3).images, first.images) and torch.equal(mix(BATCH, 3).targets, first.targets)
    assert not torch.equal(mix(BATCH, 4).targets, first.targets)
    assert not torch.equal(other(BATCH, 3).targets, first.targets)
    assert BATCH.targets is None and torch.equal(BATCH.images, IMAGES)


def test_targets_sum_to_one() -> None:
    mix = mixer(mixup=0.8, cutmix=1.0, classes=7, seed=0)
    for step in range(10):
        torch.testing.assert_close(mix(BATCH, step).targets.sum(1), torch.ones(4))


def test_one_image_stays_as_it_is() -> None:
    one = BATCH.split(1)[1]
    mixed = mixer(mixup=0.8, cutmix=1.0, classes=3, seed=0)(one, 0)
    assert mixed.images is one.images and mixed.targets.tolist() == [[0.0, 0.0, 1.0]]


def test_the_loss_follows_the_shares_of_a_mixed_batch() -> None:
    """Against -sum t log softmax, with and without smoothing; the labels would give another number."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    mixed = mixer(mixup=0.8, cutmix=0, classes=3, seed=0)(BATCH, 1)
    logarithms = logits.log_softmax(1)
    assert torch.allclose(cross_entropy(logits, mixed), -(mixed.targets * logarithms).sum(1).mean())
    assert torch.allclose(cross_entropy(logits, BATCH), -logarithms[torch.arange(4), BATCH.labels].mean())
    assert not torch.allclose(cross_entropy(logits, mixed), cross_entropy(logits, BATCH))
    smooth = 0.8 * mixed.targets + 0.2 / 3
    assert torch.allclose(cross_entropy(logits, mixed, label_smoothing=0.2), -(smooth * logarithms).sum(1).mean())
