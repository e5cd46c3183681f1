"""Augmentation of the training images: flips, quarter turns, a mild affine change, colour jitter."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def train_augmentation(image_size: int) -> Any:
    """Builds the training augmentation.

    Polyps and cells have no up and no left, so all eight flips and quarter turns are free; the affine and
    colour changes are kept mild.

    Args:
        image_size: longer side of the images in pixels; the shift is at most a sixteenth of it.

    Returns:
        An `albumentations.Compose`, called as `compose(image=(h, w, 3) uint8, mask=(h, w) uint8)` after
        `reseed`.
    """
    from samtune.base.environment import set_defaults

    set_defaults()
    import albumentations as A  # type: ignore[import-untyped]
    import cv2

    shift = image_size // 16
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.5),
            A.Affine(
                scale=(0.85, 1.2),
                rotate=(-15, 15),
                translate_px={"x": (-shift, shift), "y": (-shift, shift)},
                border_mode=cv2.BORDER_CONSTANT,
                p=0.5,
            ),
            A.ColorJitter(
                brightness=(0.85, 1.15), contrast=(0.85, 1.15), saturation=(0.85, 1.15), hue=(-0.02, 0.02), p=0.5
            ),
        ]
    )


def reseed(augmentation: Any, seed: int) -> None:
    """Makes the next call of an augmentation depend on `seed` only.

    Without it, albumentations repeats itself in every worker and epoch. Its own `set_random_seed` gives each
    step of the pipeline a generator of the same seed, so that all of them toss the same coin: either every
    flip, turn and jitter happens or none. Here the steps share one generator.

    Args:
        augmentation: what `train_augmentation` built.
        seed: any non-negative integer.
    """
    augmentation.set_random_state(np.random.default_rng(seed), random.Random(seed))
