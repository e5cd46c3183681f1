"""Items and batches of labelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.data.pictures import read_image
from samtune.errors import DataError
from samtune.tasks.classes.dataset import ClassDataset, collate_classes
from samtune.tasks.classes.splits import LabelledImage
from samtune.tasks.classes.views import View, build_view


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    made = []
    for i in range(6):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = tmp_path / f"{i}.png"
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(path)
        made.append(LabelledImage(image=path, label=i % 3, name=path.name))
    return made


def view(augment: str = "none", resize: str = "squash") -> View:
    return build_view(augment, image_size=16, resize=resize)


def test_an_item_is_name_pixels_and_label(images) -> None:
    dataset = ClassDataset(images, view())
    name, shown, label = dataset[4]
    expected = Image.fromarray(read_image(images[4].image)).resize((16, 16), Image.Resampling.BICUBIC)
    assert (name, label, len(dataset), dataset.skipped) == ("4.png", 1, 6, 0)
    assert shown.dtype == torch.uint8 and torch.equal(shown[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_two_views_follow_each_other_with_the_same_labels(images) -> None:
    dataset = ClassDataset(images, view("contrastive"), views=2)
    batch = collate_classes([dataset[i] for i in (0, 1, 5)])
    assert batch.images.shape == (6, 3, 16, 16) and batch.images.is_contiguous()
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2] and batch.labels.dtype == torch.int64
    assert batch.names == ("0.png~1", "1.png~1", "5.png~1", "0.png~2", "1.png~2", "5.png~2")
    for i, index in enumerate((0, 1, 5)):
        first, second = dataset[index][1]
        assert torch.equal(batch.images[i], first) and torch.equal(batch.images[i + 3], second)
        assert not torch.equal(first, second)


def test_one_view_keeps_the_names(images) -> None:
    batch = collate_classes([ClassDataset(images, view())[i] for i in range(2)])
    assert batch.names == ("0.png", "1.png") and batch.images.shape == (2, 3, 16, 16) and batch.targets is None


def test_randomness_is_of_seed_epoch_index(images) -> None:
    same = [images[0]] * 3
    dataset = ClassDataset(same, view("strong"), seed=3)
    first = [dataset[i][1] for i in range(3)]
    assert not torch.equal(first[0], first[1])
    torch.rand(7)
    assert torch.equal(dataset[1][1], first[1])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[1][1], first[1])
    assert not torch.equal(ClassDataset(same, view("strong"), seed=4)[1][1], first[1])
    dataset.set_epoch(0)
    assert torch.equal(dataset[1][1], first[1])


@pytest.mark.parametrize("augment", ["none", "light", "strong", "contrastive"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_cache_changes_nothing_and_decodes_once(images, augment: str, resize: str) -> None:
    plain, cached = (ClassDataset(images, view(augment, resize), cache=cache) for cache in (False, True))
    cached.fill_cache()
    expected = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        expected.append([plain[i][1] for i in range(6)])
    for item in images:
        item.image.unlink()
    for epoch in range(2):
        cached.set_epoch(epoch)
        assert all(torch.equal(cached[i][1], expected[epoch][i]) for i in range(6))


def test_cache_keeps_as_little_as_every_epoch_shares(images) -> None:
    sizes = {("none", "squash"): (16, 16), ("none", "crop"): (16, 16), ("light", "squash"): (16, 16)}
    sizes |= {("light", "crop"): (24, 18), ("strong", "crop"): (40, 30), ("contrastive", "squash"): (40, 30)}
    for (augment, resize), expected in sizes.items():
        dataset = ClassDataset(images, view(augment, resize), cache=True)
        dataset.fill_cache()
        assert {picture.size for picture in dataset._cache.values()} == {expected}, (augment, resize)


def test_a_bad_image_is_named(images, tmp_path: Path) -> None:
    images[2].image.write_bytes(images[2].image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"2\.png: "):
        ClassDataset(images, view())[2]
    Image.new("RGB", (202, 2)).save(tmp_path / "long.png")
    long = LabelledImage(image=tmp_path / "long.png", label=0, name="long.png")
    with pytest.raises(DataError, match=r"long\.png: 202 x 2 pixels, one side more than 100 times the other; cut"):
        ClassDataset([long], view())[0]
