"""Pictures without an object: refused, or trained on and kept out of every mean and contrast."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.data.loaders import LoaderOptions
from samtune.errors import ConfigError, DataError
from samtune.metrics.trivial import TrivialMasks, mean_mask
from samtune.run.settings import load_config
from samtune.tasks.masks.dataset import build_data
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.masks.splits import resolve_split, verify_folder
from samtune.types import Batch

PARTS = {"train": 6, "val": 3, "test": 3}


@pytest.fixture
def folder(make_folder) -> Path:
    """Three parts, in each of which the first picture, and of train the second, has no object."""
    for number, (part, count) in enumerate(PARTS.items()):
        place = make_folder([f"{part}{i}" for i in range(count)], f"set/{part}", seed=number)
        for i in range(2 if part == "train" else 1):
            clear(place / "masks" / f"{part}{i}.png")
    return place.parent


def clear(mask: Path) -> None:
    Image.fromarray(np.zeros((30, 40), dtype=np.uint8)).save(mask)


def test_they_are_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_split(folder, empty="refuse")
    assert "4 of 12 masks show no object, such as" in str(caught.value)
    assert "train0.png: data.empty=train trains on them" in str(caught.value)


def test_they_are_told_when_asked_for(folder: Path) -> None:
    splits = resolve_split(folder, empty="train")
    assert len(splits.train) == 6
    assert "without an object: 2 of 6 in train, 1 of 3 in val, 1 of 3 in test" in splits.notes[-1]
    assert not [note for note in resolve_split(folder, empty="skip").notes if "without an object" in note]
    assert any("mask is all background" in line for line in verify_folder(folder).warnings)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_to_measure_needs_an_object(folder: Path, part: str) -> None:
    for path in (folder / part / "masks").iterdir():
        clear(path)
    for empty in ("refuse", "train"):
        with pytest.raises(DataError, match=rf"all 3 masks of {part} are empty, such as .*no Dice to measure"):
            resolve_split(folder, empty=empty)


def test_the_contrast_is_of_pictures_with_an_object(folder: Path) -> None:
    splits, options = resolve_split(folder), LoaderOptions(batch=2, score_batch=2)
    names = []
    for score_empty in (False, True):
        data = build_data(splits, options, image_size=32, score_empty=score_empty)
        names.append([name for batch in data.score for name in batch.names])
        assert len(data.train.dataset) == 6
    assert names == [[f"train{i}" for i in range(2, 6)], [f"train{i}" for i in range(6)]]


def test_the_setting_and_its_limits(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("samtune"), "propagate", True)
    assert load_config("polyp.yaml").data.empty == "refuse"
    assert load_config("polyp.yaml", ("data.empty=train",)).data.empty == "train"
    with pytest.raises(ConfigError, match=r"data\.empty.*nothing to prompt for"):
        load_config("polyp.yaml", ("data.empty=train", "data.prompt=box"))
    with pytest.raises(ConfigError, match=r"data\.empty"):
        load_config("polyp.yaml", ("data.empty=skip",))
    assert not caplog.records
    load_config("polyp.yaml", ("eval.empty=nan",))  # of a run of an earlier version
    assert "eval.empty has no meaning any more" in caplog.text
    with pytest.raises(ConfigError, match=r"eval\.empty"):
        load_config("polyp.yaml", ("eval.empty=two",))


def empty_batch(side: int = 8) -> Batch:
    image, mask = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.zeros(1, 1, side, side, dtype=torch.bool)
    return Batch(image, mask, ((side, side),), ("nothing",), (np.zeros((side, side), dtype=bool),))


def test_the_loss_of_nothing_is_finite_and_falls_with_the_false_mask() -> None:
    """Dice of an empty truth is 1 - 1 / (sum(p) + 1); at p = 1/2 on 64 pixels 32 / 33, beside the entropy of 1/2."""
    batch, values = empty_batch(), []
    for level in (4.0, 0.0, -4.0, -20.0):
        logits = torch.full((1, 1, 8, 8), level, requires_grad=True)
        loss = dice_bce(logits, batch)
        loss.backward()
        assert logits.grad is not None and bool((logits.grad > 0).all())  # a step always lowers the logits
        values.append(float(loss.detach()))
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(32 / 33 + np.log(2), abs=1e-5)
    assert values[-1] == pytest.approx(0, abs=1e-5)


def test_answers_without_a_model_leave_them_out() -> None:
    answers = TrivialMasks(None)
    answers.add(empty_batch())
    assert np.isnan([value for values in answers.dice.values() for value in values]).all() and answers.dice
    mask, nothing = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    mask[:4] = True
    assert mean_mask([nothing]) is None
    np.testing.assert_array_equal(mean_mask([mask, *[nothing] * 20]), mean_mask([mask]))
