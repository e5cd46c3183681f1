"""The pre-training scenes: deterministic, never empty, labels where the picture changes."""

from __future__ import annotations

import pytest
import torch
from tiny_scenes import HELD_OUT_SEED, generate_scenes, load_photos


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    return load_photos()


def draw(photos: list[torch.Tensor], seed: int, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = generate_scenes(batch, size=64, generator=torch.Generator().manual_seed(seed), photos=photos)
    return scenes.images, scenes.instances


def test_scenes_depend_on_the_seed_only(photos: list[torch.Tensor]) -> None:
    first, again, other = draw(photos, 1), draw(photos, 1), draw(photos, HELD_OUT_SEED)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_scenes_have_objects_numbered_without_gaps(photos: list[torch.Tensor]) -> None:
    images, instances = draw(photos, 2, batch=24)
    assert images.shape == (24, 3, 64, 64) and images.dtype == torch.uint8
    assert instances.shape == (24, 64, 64) and instances.dtype == torch.uint8
    for instance in instances:
        numbers = instance.unique().tolist()
        assert max(numbers) >= 1
        assert [n for n in numbers if n] == list(range(1, max(numbers) + 1))


def test_labels_lie_where_the_picture_changes(photos: list[torch.Tensor]) -> None:
    images, instances = draw(photos, 3, batch=32)
    grey = images.float().mean(dim=1)
    step = (grey[:, :, 1:] - grey[:, :, :-1]).abs()
    border = instances[:, :, 1:] != instances[:, :, :-1]
    assert step[border].mean() > 2 * step[~border].mean()
