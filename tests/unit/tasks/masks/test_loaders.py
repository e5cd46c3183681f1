"""The four loaders, and that nothing but (seed, epoch) decides what they give."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.data.loaders import LoaderOptions, Loaders
from samtune.errors import DataError
from samtune.tasks.masks.dataset import build_data
from samtune.tasks.masks.splits import resolve_split

NAMES = [f"n{i:02d}" for i in range(20)]


def build(folder: Path, *, batch: int, score_batch: int = 8, split: str = "auto", **values) -> Loaders:
    """Builds loaders of pictures of 32 px; options of cut, reading and task together."""
    ours = {key: values.pop(key) for key in ("score_images", "seed", "workers", "cache") if key in values}
    options = LoaderOptions(batch=batch, score_batch=score_batch, **ours)
    splits = resolve_split(folder, split=split, seed=options.seed)
    return build_data(splits, options, image_size=32, **values)


def content(loader) -> list[tuple]:
    return [(b.names, b.images.sum().item(), b.masks.sum().item()) for b in loader]


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch.names]


def test_parts_orders_and_sizes(make_folder) -> None:
    data = build(make_folder(NAMES), batch=3, score_batch=4)
    assert (len(data.splits.train), len(data.splits.val), len(data.splits.test)) == (16, 2, 2)
    assert names(data.val) == sorted(names(data.val)) and names(data.test) == [p.name for p in data.splits.test]
    assert names(data.score) == [p.name for p in data.splits.train]
    assert [len(b) for b in data.train] == [3] * 5 + [1]  # nothing is dropped
    assert [len(b) for b in data.score] == [4] * 4
    assert sorted(names(data.train)) == names(data.score) != names(data.train)


def test_epochs_reshuffle_and_repeat(make_folder) -> None:
    folder = make_folder(NAMES)
    data = build(folder, batch=4)
    first = content(data.train)
    data.set_epoch(1)
    second = content(data.train)
    data.set_epoch(0)
    assert content(data.train) == first != second
    assert content(build(folder, batch=4).train) == first
    assert content(build(folder, batch=4, seed=1, split="ratio").train) != first


@pytest.mark.parametrize("cache", [False, True])
def test_workers_change_nothing(make_folder, cache: bool) -> None:
    folder = make_folder(NAMES)
    alone = build(folder, batch=4, prompt="box")
    helped = build(folder, batch=4, prompt="box", workers=2, cache=cache)
    for epoch in range(2):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        for one, other in zip(alone.train, helped.train, strict=True):
            assert one.names == other.names and torch.equal(one.images, other.images)
            assert torch.equal(one.prompts.boxes_input, other.prompts.boxes_input)


def test_score_images_are_a_seeded_part_of_train(make_folder) -> None:
    folder = make_folder(NAMES)
    chosen = [names(build(folder, batch=4, score_images=5).score) for _ in range(2)]
    data = build(folder, batch=4)
    assert chosen[0] == chosen[1] == sorted(chosen[0]) and len(chosen[0]) == 5
    assert set(chosen[0]) < {p.name for p in data.splits.train}
    assert set(names(data.score)).isdisjoint(names(data.val) + names(data.test))


def test_score_has_no_prompt_unless_asked(make_folder) -> None:
    folder = make_folder(NAMES)
    data = build(folder, batch=4, prompt="box")
    assert next(iter(data.score)).prompts is None and next(iter(data.val)).prompts is not None
    data = build(folder, batch=4, prompt="box", score_prompt="box")
    assert next(iter(data.score)).prompts.boxes_input.shape == (8, 4)


def test_without_augmentation_every_epoch_is_the_same_set(make_folder) -> None:
    data = build(make_folder(NAMES), batch=4, augment=False)
    sums = []
    for epoch in range(2):
        data.set_epoch(epoch)
        sums.append(sorted(image.sum().item() for batch in data.train for image in batch.images))
    assert sums[0] == sums[1]


def test_bad_files_stop_it_and_warnings_are_logged_by_kind(make_folder, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(NAMES)
    for name in NAMES[:4]:
        (folder / "masks" / f"{name}.png").rename(folder / "masks" / f"{name}.tmp")
        Image.open(folder / "masks" / f"{name}.tmp").save(folder / "masks" / f"{name}.jpg", quality=100)
    with caplog.at_level(logging.WARNING):
        build(folder, batch=4)
    assert any(line.startswith("4 files, such as") and "JPEG mask" in line for line in caplog.messages)
    (folder / "masks" / "n05.png").write_bytes(b"nothing")
    (folder / "masks" / "n06.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 problem.*n05\.png.*n06\.png"):
        build(folder, batch=4)


def test_nothing_to_prompt_for(make_folder) -> None:
    folder = make_folder(NAMES)
    for part in ("train", "val"):
        make_folder(NAMES[:4], f"parts/{part}", seed=1 + len(part))
    make_folder(NAMES[:4], "parts/test", seed=9)
    for name in NAMES[:4]:
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(folder.parent / "parts" / "train" / "masks" / f"{name}.png")
    with pytest.raises(DataError, match="all 4 masks of train are empty"):
        build(folder.parent / "parts", batch=4, prompt="box", score_prompt="box")
