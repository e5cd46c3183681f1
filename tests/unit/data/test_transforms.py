"""The training augmentation."""

from __future__ import annotations

import numpy as np

from samtune.data.frames import reseed, train_augmentation

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
MASK = np.zeros((64, 48), dtype=np.uint8)
MASK[20:40, 10:30] = 1


def test_same_seed_same_picture_other_seed_other_picture() -> None:
    one, other = train_augmentation(64, turns=True), train_augmentation(64, turns=True)
    results = []
    for transform, seed in ((one, 5), (one, 6), (other, 5)):
        reseed(transform, seed)
        results.append(transform(image=IMAGE, mask=MASK)["image"])
    np.testing.assert_array_equal(results[0], results[2])
    assert results[0].shape != results[1].shape or (results[0] != results[1]).any()


def test_steps_are_drawn_independently() -> None:
    """Guards against `Compose.set_random_seed`, which makes every step toss the same coin."""
    transform = train_augmentation(64, turns=True)
    transform.transforms = transform.transforms[:2]  # the two flips
    seen = {"both": 0, "horizontal": 0, "vertical": 0, "none": 0}
    flipped = {"both": IMAGE[::-1, ::-1], "horizontal": IMAGE[:, ::-1], "vertical": IMAGE[::-1], "none": IMAGE}
    for seed in range(200):
        reseed(transform, seed)
        changed = transform(image=IMAGE)["image"]
        seen[next(name for name, expected in flipped.items() if np.array_equal(changed, expected))] += 1
    assert min(seen.values()) > 30  # 50 expected of each


def test_results_fit_the_input_frame_and_keep_binary_masks() -> None:
    transform = train_augmentation(64, turns=True)
    shapes, areas = set(), []
    for seed in range(40):
        reseed(transform, seed)
        changed = transform(image=IMAGE, mask=MASK)
        assert changed["image"].dtype == np.uint8 and changed["image"].shape[:2] == changed["mask"].shape
        assert changed["mask"].max() <= 1
        shapes.add(changed["mask"].shape)
        areas.append(int(changed["mask"].sum()))
    assert shapes == {(64, 48), (48, 64)}
    assert min(areas) > 250 and max(areas) < 700  # 400 pixels, scaled by 0.85 to 1.2 per side


def test_image_and_mask_move_together() -> None:
    transform = train_augmentation(64, turns=True)
    bright = np.repeat(MASK[:, :, None] * 250, 3, axis=2).astype(np.uint8)
    for seed in range(20):
        reseed(transform, seed)
        changed = transform(image=bright, mask=MASK)
        agree = (changed["image"].mean(axis=2) > 100) == (changed["mask"] > 0)
        assert agree.mean() > 0.97
