"""Prompts of several kinds in one training: what is drawn, by which shares, and how a batch of them is answered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from samtune.data.frames import Collate
from samtune.data.loaders import LoaderOptions
from samtune.errors import ConfigError
from samtune.models.table import build_model
from samtune.run.settings import load_config
from samtune.tasks.masks.dataset import SegmentationDataset, build_data
from samtune.tasks.masks.mixed import ByPrompt, by_prompt
from samtune.tasks.masks.splits import resolve_split
from samtune.types import Batch

SHARES: Any = {"none": 0.5, "box": 0.25, "point": 0.25}


@pytest.fixture
def pairs(make_folder: Any) -> list[Any]:
    return list(resolve_split(make_folder([f"n{i:02d}" for i in range(12)])).train)


def kinds(dataset: SegmentationDataset) -> list[str]:
    found = []
    for sample in (dataset[index] for index in range(len(dataset))):
        told = {"box": sample.box_input, "point": sample.points_input}
        found.append(next((kind for kind, value in told.items() if value is not None), "none"))
    return found


@pytest.mark.parametrize("augment", [False, True])
def test_kinds_are_drawn_by_their_shares_and_by_seed_and_epoch_alone(pairs: list[Any], augment: bool) -> None:
    dataset = SegmentationDataset(pairs, image_size=32, prompt=SHARES, augment=augment)
    assert len(dataset) == len(pairs)
    epochs = []
    for epoch in range(30):
        dataset.set_epoch(epoch)
        epochs.append(kinds(dataset))
    counts = Counter(kind for epoch in epochs for kind in epoch)
    total = sum(counts.values())
    assert {kind: pytest.approx(counts[kind] / total, abs=0.09) for kind in SHARES} == SHARES
    assert epochs[0] != epochs[1]
    again = SegmentationDataset(pairs, image_size=32, prompt=SHARES, augment=augment)
    again.set_epoch(7)
    assert kinds(again) == epochs[7]


def test_a_kind_without_a_share_is_never_drawn(pairs: list[Any]) -> None:
    dataset = SegmentationDataset(pairs, image_size=32, prompt={"box": 0.5, "point": 0.5}, augment=True)
    assert set(kinds(dataset)) == {"box", "point"}


def test_a_picture_without_an_object_has_no_prompt(pairs: list[Any]) -> None:
    with Image.open(pairs[0].mask) as mask:
        Image.fromarray(np.zeros(mask.size[::-1], dtype=np.uint8)).save(pairs[0].mask)
    shares: Any = {"none": 0.01, "box": 0.99}
    dataset = SegmentationDataset(pairs, image_size=32, prompt=shares)
    found = kinds(dataset)
    assert found[0] == "none" and "box" in found


def batch_of(pairs: list[Any]) -> Batch:
    """A batch of all three kinds, in turn."""
    each = [SegmentationDataset(pairs, image_size=64, prompt=kind, augment=True) for kind in SHARES]
    return Collate(64)([each[place % 3][place] for place in range(7)])


def test_a_batch_is_taken_apart_by_kind(pairs: list[Any]) -> None:
    batch = batch_of(pairs)
    assert batch.prompts is not None and batch.prompts.boxes_input is not None
    assert batch.prompts.boxes_input[:, 0].isnan().tolist() == [True, False, True, True, False, True, True]
    parts = by_prompt(batch)
    assert [places.tolist() for places, _ in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    (_, none), (_, boxed), (_, clicked) = parts
    assert none.prompts is None and none.names == tuple(batch.names[i] for i in (0, 3, 6))
    assert boxed.prompts is not None and boxed.prompts.points_input is None and boxed.prompts.labels is None
    assert boxed.prompts.boxes_input is not None and torch.isfinite(boxed.prompts.boxes_input).all()
    assert clicked.prompts is not None and clicked.prompts.boxes_input is None
    assert clicked.prompts.labels is not None and (clicked.prompts.labels == 1).all()
    assert torch.equal(clicked.images, batch.images[[2, 5]]) and torch.equal(clicked.masks, batch.masks[[2, 5]])
    for place, (places, part) in enumerate([*by_prompt(boxed), *by_prompt(none)]):
        assert part is (boxed, none)[place] and places.tolist() == list(range(len(part)))
    assert [len(part) for part in batch.split(3)] == [3, 3, 1]


def test_each_item_is_answered_as_if_it_was_asked_alone(pairs: list[Any]) -> None:
    torch.manual_seed(0)
    model = build_model("sam_lite", checkpoint="random", image_size=64)
    model.eval()
    batch = batch_of(pairs)
    with torch.no_grad():
        whole = ByPrompt(model)(batch)
        for place, one in enumerate(batch.split(1)):
            (_, alone) = by_prompt(one)[0]
            torch.testing.assert_close(whole[place : place + 1], model(alone), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ByPrompt(model)(one), model(alone))  # a pass of one, where memory is short
    assert not whole.isnan().any()


def test_one_kind_is_one_pass(pairs: list[Any]) -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, batch: Batch) -> Tensor:
            self.calls += 1
            return torch.zeros(len(batch), 1, 16, 16)

    model = Counted()
    (_, none), (_, boxed), _ = by_prompt(batch_of(pairs))
    network = ByPrompt(model)
    network(none)
    network(boxed)
    assert model.calls == 2


def config_of(*overrides: str) -> Any:
    return load_config("polyp.yaml", overrides).data


def test_what_is_asked_by_default(tmp_path: Path) -> None:
    data = config_of("data.prompt=mixed")
    assert data.shares == SHARES and data.asked == "none"
    data = config_of("data.prompt=mixed", "data.mix={none: 0, box: 1, point: 3}")
    assert data.shares == {"box": 0.25, "point": 0.75} and data.asked == "point"
    data = config_of("data.prompt=box")
    assert data.shares == {"box": 1.0} and data.asked == "box"
    assert config_of("data.prompt=mixed", "data.empty=train").asked == "none"


def test_an_epoch_that_goes_on_draws_the_same(make_folder: Any) -> None:
    splits = resolve_split(make_folder([f"n{i:02d}" for i in range(12)]))

    def batches(skip: int) -> list[bytes]:
        data = build_data(splits, LoaderOptions(2, 2), image_size=32, prompt=SHARES)
        data.set_epoch(3, skip=skip)
        return [batch.content() for batch in data.train]

    assert batches(2) == batches(0)[2:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.prompt=mixed", "data.mix={none: 0, box: 0, point: 0}"), "data.mix.point: 0.*a share > 0"),
        (("data.prompt=box", "data.mix.none=0.1"), "data.mix.*no value without data.prompt: mixed"),
        (("data.prompt=mixed", "data.mix.box=-1"), "data.mix.box: -1.*>= 0"),
        (("data.prompt=mixed", "data.mix.clicks=1"), "data.mix.clicks: unknown key"),
        (("data.prompt=mixed", "data.mix.none=0", "data.empty=train"), "data.empty.*refuse with data.prompt: mixed"),
    ],
)
def test_settings_that_can_not_be(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(*overrides)
