"""The loaders of a classification run, and that nothing but (seed, epoch) decides what they give."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.data.loaders import LoaderOptions, Loaders
from samtune.errors import DataError
from samtune.tasks.classes.dataset import build_class_data
from samtune.tasks.classes.splits import ClassSplits, LabelledImage
from samtune.tasks.classes.views import build_view


@pytest.fixture
def splits(tmp_path: Path) -> ClassSplits:
    """Three classes in order of their folders: 12 train, 3 val, 5 test images."""
    made = []
    for i in range(20):
        name = f"{'abc'[i % 12 // 4]}/{i:02d}.png"
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(path)
        made.append(LabelledImage(image=path, label=i % 12 // 4, name=name))
    return ClassSplits(made[:12], made[12:15], made[15:], classes=("a", "b", "c"))


def build(splits: ClassSplits, *, batch: int, score_batch: int = 32, **values) -> Loaders:
    """Builds loaders of pictures of 16 px; options of reading and of the task together."""
    ours = {key: values.pop(key) for key in ("score_images", "seed", "workers", "cache") if key in values}
    options = LoaderOptions(batch=batch, score_batch=score_batch, **ours)
    look = {key: values.pop(key) for key in ("resize", "interpolation") if key in values}
    return build_class_data(splits, options, partial(build_view, image_size=16, **look), **values)


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch.names]


def same(one, other) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.names == b.names and a.content() == b.content() for a, b in pairs)


def test_parts_orders_and_sizes(splits) -> None:
    data = build(splits, batch=5, score_batch=4)
    assert names(data.val) == [i.name for i in splits.val] and names(data.test) == [i.name for i in splits.test]
    assert [len(b) for b in data.train] == [5, 5, 2]  # nothing is dropped
    assert sorted(names(data.train)) == [i.name for i in splits.train] != names(data.train)
    assert data.splits is splits and data.train.dataset.skipped == 0
    labels = {i.name: i.label for i in splits.train}
    for batch in data.train:
        assert batch.labels.tolist() == [labels[name] for name in batch.names]


def test_no_validation_images_no_loader(splits) -> None:
    assert build(replace(splits, val=[]), batch=5).val is None


def test_notes_on_the_split_are_told(splits, caplog: pytest.LogCaptureFixture) -> None:
    build(replace(splits, notes=["val cut from 100% of train"]), batch=5)
    assert [record.getMessage() for record in caplog.records] == ["val cut from 100% of train"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_and_test_are_needed(splits, part: str) -> None:
    with pytest.raises(DataError, match=f"the {part} part has no image"):
        build(replace(splits, **{part: []}), batch=5)


def test_epochs_reshuffle_and_repeat(splits) -> None:
    def train(**values):
        return build(splits, batch=4, augment="strong", **values)

    data = train()
    first = list(data.train)
    data.set_epoch(1)
    second = list(data.train)
    data.set_epoch(0)
    assert same(data.train, first) and same(train().train, first)
    assert not same(second, first) and not same(train(seed=1).train, first)


@pytest.mark.parametrize("cache", [False, True])
def test_workers_see_the_epoch_and_change_nothing(splits, cache: bool) -> None:
    alone = build(splits, batch=4, augment="strong", score_views=True)
    helped = build(splits, batch=4, augment="strong", score_views=True, workers=2, cache=cache)
    shown = []
    for epoch in range(2):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        shown.append(list(helped.train))
        assert same(alone.train, shown[-1])
    assert not same(*shown)
    for part in ("score", "val", "test"):
        assert same(getattr(alone, part), getattr(helped, part))


def test_score_images_are_a_fixed_shuffled_part_of_train(splits) -> None:
    data = build(splits, batch=4, score_images=8, score_batch=4, augment="strong")
    chosen = names(data.score)
    assert len(set(chosen)) == 8 and set(chosen) < {i.name for i in splits.train}
    data.set_epoch(3)
    assert names(data.score) == chosen != sorted(chosen)
    assert [len(b) for b in data.score] == [4, 4]
    every = build(splits, batch=4, score_batch=4)
    assert all(len(b.labels.unique()) > 1 for b in every.score)  # sorted, each of these would be of one class
    plain = torch.cat([b.images for b in every.score])
    order = [[i.name for i in splits.train].index(name) for name in names(every.score)]
    dataset = every.train.dataset  # not augmented here
    assert all(torch.equal(plain[i], dataset[at][1][0]) for i, at in enumerate(order))


def test_score_views_give_every_image_a_partner(splits) -> None:
    data = build(splits, batch=4, score_views=True, score_batch=5)
    batches = list(data.score)
    assert [len(b) for b in batches] == [10, 10, 4]
    for batch in batches:
        half = len(batch) // 2
        assert torch.equal(batch.labels[:half], batch.labels[half:])
        assert [n.removesuffix("~1") for n in batch.names[:half]] == [n.removesuffix("~2") for n in batch.names[half:]]
    assert same(data.score, batches)
