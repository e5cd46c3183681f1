"""Samples and batches of the input frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.data.frames import Collate, resize_longest
from samtune.data.pairs import Pair, find_pairs
from samtune.errors import DataError
from samtune.tasks.masks import dataset as segmentation
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.types import Sample

NAMES = ["a", "b", "c", "d"]


def same(one: Sample, other: Sample) -> bool:
    equal = torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)
    for key in ("box_input", "points_input"):
        first, second = getattr(one, key), getattr(other, key)
        equal &= torch.equal(first, second) if first is not None else second is None
    return equal and one.name == other.name


@pytest.fixture
def two_parts(make_folder) -> list[Pair]:
    """`a` has two components, `b` none, `c` one."""
    folder = make_folder(["a", "b", "c"])
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[2:12, 2:12] = mask[15:28, 20:38] = 255
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    Image.fromarray(mask * 0).save(folder / "masks" / "b.png")
    return find_pairs(folder)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((30, 40), 64, (48, 64)),
        ((40, 30), 64, (64, 48)),
        ((3, 1000), 64, (1, 64)),
        ((531, 622), 1024, (874, 1024)),
        ((530, 622), 1024, (873, 1024)),  # 872.54, half up
        ((622, 530), 1024, (1024, 873)),
    ],
)
def test_input_size_follows_segment_anything(size, longest, expected) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    assert resize_longest(np.zeros(size, bool), longest).shape == expected
    if min(size) > 10:
        assert ResizeLongestSide.get_preprocess_shape(*size, longest) == expected


def test_images_are_scaled_as_segment_anything_does() -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_longest(image, 32), ResizeLongestSide(32).apply_image(image))


def test_scaled_images_and_masks_round_half_up() -> None:
    assert resize_longest(np.zeros((53, 90, 3), np.uint8), 32).shape == (19, 32, 3)  # 18.84
    assert resize_longest(np.zeros((53, 90), bool), 32).shape == (19, 32)


def test_masks_are_scaled_by_nearest() -> None:
    mask = np.zeros((20, 40), dtype=bool)
    mask[:, 20:] = True
    small = resize_longest(mask, 20)
    assert small.dtype == np.bool_ and small.shape == (10, 20)
    assert small[:, 10:].all() and not small[:, :10].any()


def test_sample_without_prompt(make_folder) -> None:
    pairs = find_pairs(make_folder(NAMES))
    sample = SegmentationDataset(pairs, image_size=64)[1]
    assert sample.name == "b"
    assert sample.image.shape == (3, 48, 64) and sample.image.dtype == torch.uint8
    assert sample.mask.shape == (48, 64) and sample.mask.dtype == torch.bool
    assert sample.truth.shape == (30, 40) and sample.truth.sum() == 10 * 13
    assert sample.box_input is None and sample.points_input is None and sample.labels is None


def test_empty_masks_are_kept_without_prompt(two_parts) -> None:
    dataset = SegmentationDataset(two_parts, image_size=64)
    assert len(dataset) == 3 and not dataset[1].mask.any() and dataset.skipped == 0


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_components_are_enumerated_for_evaluation(two_parts, prompt) -> None:
    dataset = SegmentationDataset(two_parts, image_size=80, prompt=prompt)
    assert [dataset[i].name for i in range(len(dataset))] == ["a#1", "a#2", "c#1"]
    assert dataset.skipped == 1
    first, second = dataset[0], dataset[1]
    assert first.truth.sum() == 100 and second.truth.sum() == 13 * 18
    assert not (first.mask & second.mask).any()
    if prompt == "box":
        assert first.box_input.tolist() == [4, 4, 23, 23] and first.points_input is None
    else:
        (x, y), label = first.points_input[0].int().tolist(), first.labels.tolist()
        assert first.mask[y, x] and label == [1] and first.box_input is None


@pytest.mark.parametrize("prompt", ["none", "box", "point"])
def test_augmented_items_are_images_and_differ_by_epoch_only(two_parts, prompt) -> None:
    def items(epoch: int) -> list[Sample]:
        dataset = SegmentationDataset(two_parts, image_size=64, prompt=prompt, augment=True, seed=3)
        dataset.set_epoch(epoch)
        return [dataset[i] for i in range(len(dataset))]

    first, again, second = items(0), items(0), items(1)
    assert [s.name for s in first] == (["a", "b", "c"] if prompt == "none" else ["a", "c"])
    assert all(same(x, y) for x, y in zip(first, again, strict=True))
    assert not all(same(x, y) for x, y in zip(first, second, strict=True))
    assert all(max(s.mask.shape) == 64 for s in first)


def test_augmented_prompts_fit_their_target(two_parts) -> None:
    dataset = SegmentationDataset(two_parts, image_size=64, prompt="point", augment=True)
    areas = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        x, y = sample.points_input[0].int().tolist()
        assert sample.mask[y, x] and sample.truth.sum() == sample.mask.sum()
        areas.add(int(sample.mask.sum()) > 400)
    assert areas == {True, False}  # both components are drawn


def test_augmentation_is_seeded_by_index_not_by_order(make_folder) -> None:
    pairs = find_pairs(make_folder(NAMES))
    forward = SegmentationDataset(pairs, image_size=64, augment=True)
    backward = SegmentationDataset(pairs, image_size=64, augment=True)
    one = [forward[i] for i in range(4)]
    other = [backward[i] for i in reversed(range(4))][::-1]
    assert all(same(x, y) for x, y in zip(one, other, strict=True))


def test_targets_too_thin_for_the_input_frame_survive(make_folder) -> None:
    folder = make_folder(["a"], size=(400, 300))
    mask = np.zeros((300, 400), dtype=np.uint8)
    mask[101, 50:90] = 255
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    for prompt in ("none", "box", "point"):
        assert SegmentationDataset(find_pairs(folder), image_size=16, prompt=prompt)[0].mask.any()


def test_cache_decodes_once_and_changes_nothing(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = find_pairs(make_folder(NAMES))
    plain = SegmentationDataset(pairs, image_size=64, augment=True)
    cached = SegmentationDataset(pairs, image_size=64, augment=True, cache=True)
    cached.fill_cache()

    def refuse(path: Path, pixels: object) -> None:
        raise AssertionError(f"{path} decoded again")

    expected = [plain[i] for i in range(4)]
    monkeypatch.setattr(segmentation, "read_pixels", refuse)
    assert all(same(cached[i], expected[i]) for i in range(4))
    assert all(same(cached[i], expected[i]) for i in range(4))  # augmenting leaves the cache as it was


def test_size_mismatch_is_an_error(make_folder) -> None:
    folder = make_folder(["a"])
    Image.new("L", (20, 30)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: mask of 20 x 30 pixels, image of 40 x 30"):
        SegmentationDataset(find_pairs(folder), image_size=64)[0]


def test_collate_pads_right_and_bottom(make_folder) -> None:
    wide = SegmentationDataset(find_pairs(make_folder(["a"])), image_size=64, prompt="box")
    tall = SegmentationDataset(find_pairs(make_folder(["b"], "tall", size=(30, 40))), image_size=64, prompt="box")
    batch = Collate(64)([wide[0], tall[0]])
    assert batch.images.shape == (2, 3, 64, 64) and batch.masks.shape == (2, 1, 64, 64)
    assert batch.sizes_input == ((48, 64), (64, 48)) and batch.names == ("a#1", "b#1")
    assert torch.equal(batch.images[0, :, :48], wide[0].image) and not batch.images[0, :, 48:].any()
    assert torch.equal(batch.masks[1, 0, :, :48], tall[0].mask) and not batch.masks[1, :, :, 48:].any()
    assert not (batch.masks & ~batch.valid()).any()
    assert batch.prompts is not None and batch.prompts.boxes_input.shape == (2, 4)
    assert [t.shape for t in batch.truths] == [(30, 40), (40, 30)]


def test_collate_points(make_folder) -> None:
    dataset = SegmentationDataset(find_pairs(make_folder(NAMES)), image_size=64, prompt="point")
    prompts = Collate(64)([dataset[i] for i in range(3)]).prompts
    assert prompts.points_input.shape == (3, 1, 2) and prompts.labels.tolist() == [[1]] * 3
    assert prompts.boxes_input is None
    none = SegmentationDataset(dataset.pairs, image_size=64)
    assert Collate(64)([none[0]]).prompts is None


@pytest.mark.parametrize("prompt", ["none", "box"])
def test_the_mask_moves_with_its_augmented_image(tmp_path: Path, prompt: str) -> None:
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[8:28, 10:30] = 255  # off the middle: a flip or a turn moves it
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    Image.fromarray(np.repeat(mask[:, :, None] // 2 + 60, 3, axis=2)).save(tmp_path / "images" / "a.png")
    dataset = SegmentationDataset(find_pairs(tmp_path), image_size=64, prompt=prompt, augment=True)
    moved = 0
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        bright = sample.image.float().mean(dim=0) > 110
        assert (bright == sample.mask).float().mean() > 0.97
        assert sample.mask.sum() > 100 and (sample.truth == sample.mask.numpy()).all()
        moved += not torch.equal(sample.mask, SegmentationDataset(dataset.pairs, image_size=64)[0].mask)
    assert moved >= 8
