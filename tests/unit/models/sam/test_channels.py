"""A stem for other channels than RGB: its values by hand, its files, what trains of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy import toy_batch, toy_model

from samtune.errors import CheckpointError, ConfigError
from samtune.files.audit import audit
from samtune.models.sam.channels import extended_colours, extended_filters
from samtune.models.sam.model import SamModel
from samtune.models.table import build_model
from samtune.selection import SELECTORS, select
from samtune.tuning import attach, count, merge
from samtune.types import Batch, Scores

FILTERS = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [4.5, 4.5]), (3, [1.0, 2.0, 6.0]), (4, [0.75, 1.5, 4.5, 2.25]), (6, [0.5, 1.0, 3.0, 1.5, 1.5, 1.5])],
)
def test_filters_by_hand(count: int, expected: list[float]) -> None:
    found = extended_filters(FILTERS, count).flatten()
    assert found.tolist() == expected and found.sum() == 9  # of equal channels the response is that of grey


def test_colours_by_hand() -> None:
    assert extended_colours((1.0, 2.0, 6.0), 2) == (3.0, 3.0)
    assert extended_colours((1.0, 2.0, 6.0), 5) == (1.0, 2.0, 6.0, 3.0, 3.0)


def deep_batch(channels: int) -> Batch:
    batch = toy_batch()
    images = batch.images[:, :1].expand(-1, channels, -1, -1).contiguous()
    return replace(batch, images=images)


def five() -> SamModel:
    model = toy_model()
    model.add_channels(5)
    return model


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_equal_channels_are_what_grey_was(channels: int) -> None:
    model = toy_model()
    model.set_colours((100.0,) * 3, (50.0,) * 3)
    with torch.no_grad():
        expected = model(deep_batch(3))
        model.add_channels(channels)
        found = model(deep_batch(channels))
        floats = model(replace(deep_batch(channels), images=deep_batch(channels).images.float()))
    assert torch.allclose(found, expected, atol=1e-4) and torch.equal(found, floats)
    assert model.net.pixel_mean.shape == (channels, 1, 1)


@pytest.mark.parametrize("name", ["sam_lite", "sam_tiny"])
def test_files_of_rgb_and_of_channels(name: str, tmp_path: Path) -> None:
    model = build_model(name, image_size=64, channels=5)
    state = {key: value.contiguous() for key, value in model.net.state_dict().items()}
    save_file(state, tmp_path / "five.safetensors")
    again = build_model(name, image_size=64, channels=5, checkpoint=tmp_path / "five.safetensors")
    assert all(torch.equal(value, again.net.state_dict()[key]) for key, value in state.items())
    with pytest.raises(CheckpointError, match=f"It is of a {name} for 5 channels: set model.channels to that"):
        build_model(name, image_size=64, checkpoint=tmp_path / "five.safetensors")
    with torch.device("meta"):
        assert build_model(name, checkpoint="random", channels=5).channels == 5
    for wrong in (0, 1, 13):
        with pytest.raises(ConfigError, match=f"model.channels is {wrong}; possible are 2 to 12"):
            build_model(name, checkpoint="random", channels=wrong)


def test_segment_anything_takes_rgb_only() -> None:
    with torch.device("meta"):
        model = build_model("sam_tiny", checkpoint="random", channels=5)
    with pytest.raises(CheckpointError, match="segment-anything takes RGB, and this model 5 channels"):
        model.stock_notes(Path("x.pth"))


def scores_of(model: SamModel) -> Scores:
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {n: torch.randn(p.shape, generator=generator) for n, p in model.net.named_parameters()}
    return Scores(sums, 1, 0, "hash", {n: value.square() for n, value in sums.items()})


@pytest.mark.parametrize("name", [name for name in SELECTORS if not name.startswith(("vpt", "mlp"))])
def test_new_filters_train_whatever_the_method(name: str) -> None:
    model = five()
    stem = f"{model.stem}.weight"
    base = {key: value.clone() for key, value in model.net.state_dict().items()}
    scores = replace(scores_of(model), per="sample" if name == "spt" else "batch")
    selection = select(model, scores, name=name, decoder=False, biases=False)
    new = model.new_entries()[stem]
    places = torch.zeros(base[stem].numel(), dtype=torch.bool)
    places[new] = True
    chosen = torch.ones_like(places) if stem in selection.whole else torch.zeros_like(places)
    chosen[selection.entries.get(stem, new[:0])] = True
    assert bool(chosen[places].all()) and places.view(base[stem].shape)[:, 3:].all() and len(new) == 2 * len(places) / 5
    assert count(model, selection).selected >= len(new)

    trainable = attach(model, selection)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    model.train()
    model(deep_batch(5)).square().mean().backward()
    optimizer.step()
    merge(model)
    changed = (model.net.state_dict()[stem] != base[stem]).flatten()
    assert changed[places].any()
    assert audit(base, model.net.state_dict(), selection).ok


def test_of_two_channels_all_filters_are_new_and_exclude_wins() -> None:
    model = toy_model()
    model.add_channels(2)
    stem = f"{model.stem}.weight"
    selection = select(model, None, name="linear")
    assert len(selection.entries[stem]) == model.net.get_parameter(stem).numel()
    without = select(model, None, name="linear", exclude=["patch_embed"])
    assert stem not in without.entries and select(toy_model(), None, name="linear").entries == {}
