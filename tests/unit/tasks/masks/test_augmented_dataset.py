"""What a data set hands out fits its picture: the mask moves with it, and both are scaled as Segment Anything does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.data.frames import resize_longest
from samtune.data.pairs import find_pairs
from samtune.tasks.masks.dataset import SegmentationDataset


def test_an_augmented_mask_is_that_of_its_augmented_picture(tmp_path: Path) -> None:
    """The pictures show their masks: an object in a corner, which every flip and turn moves."""
    for number in range(4):
        mask = np.zeros((40, 64), dtype=np.uint8)
        mask[4:16, 6 : 30 + number] = 255
        for folder, picture in (("images", np.stack([mask] * 3, axis=-1)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"p{number}.png")
    dataset = SegmentationDataset(find_pairs(tmp_path), image_size=64, augment=True, seed=3)
    moved = 0
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for sample in (dataset[index] for index in range(len(dataset))):
            shown = sample.image.float().mean(dim=0) > 100
            assert (shown == sample.mask).float().mean() > 0.95
            still = np.zeros(sample.mask.shape, dtype=bool)
            still[4:16, 6:30] = True
            moved += float((sample.mask.numpy() & still).sum()) < 0.5 * still.sum()
    assert moved > 4


@pytest.mark.parametrize(
    ("size", "expected"), [((45, 64), (23, 32)), ((64, 45), (32, 23)), ((64, 44), (32, 22)), ((1, 1000), (1, 32))]
)
def test_sizes_are_rounded_half_up(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_longest(np.zeros(size, bool), 32).shape == expected
