"""The views of a classification picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.errors import ConfigError
from samtune.tasks.classes.views import build_view, seeded

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
RANDOM = [("light", "squash"), ("light", "crop"), ("strong", "squash"), ("contrastive", "squash")]


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def show(augment: str, *seed: int, resize: str = "squash", size: int = 56, picture: Image.Image = PICTURE):
    view = build_view(augment, image_size=size, resize=resize)
    with seeded(*seed):
        return view.drawn(view.fixed(picture))


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_squash_is_pillows_resize(name: str) -> None:
    view = build_view("none", image_size=56, interpolation=name)
    expected = PICTURE.resize((56, 56), Image.Resampling[name.upper()])
    assert torch.equal(view.drawn(view.fixed(PICTURE)), pixels(expected))


def test_crop_is_the_middle_of_the_scaled_picture() -> None:
    scaled = PICTURE.resize((85, 64), Image.Resampling.BICUBIC)  # 56 * 256 / 224 = 64; 96 * 64 / 72 = 85.3
    left, top = round((85 - 56) / 2), (64 - 56) // 2
    expected = scaled.crop((left, top, left + 56, top + 56))
    assert torch.equal(show("none", 0, resize="crop"), pixels(expected))


def test_light_flips_half_and_with_crop_moves_the_crop() -> None:
    squashed = show("none", 0)
    shown = [show("light", seed) for seed in range(60)]
    flipped = [torch.equal(one, squashed.flip(-1)) for one in shown]
    assert all(flip or torch.equal(one, squashed) for flip, one in zip(flipped, shown, strict=True))
    assert 15 < sum(flipped) < 45
    scaled = pixels(PICTURE.resize((85, 64), Image.Resampling.BICUBIC))
    crop = show("light", 3, resize="crop")
    places = [scaled[:, y : y + 56, x : x + 56] for y in range(9) for x in range(30)]
    assert any(torch.equal(crop, place) or torch.equal(crop.flip(-1), place) for place in places)
    assert len({show("light", seed, resize="crop").sum().item() for seed in range(10)}) > 5


@pytest.mark.parametrize(("augment", "resize"), RANDOM)
def test_one_seed_one_picture_and_nobody_elses_randomness(augment: str, resize: str) -> None:
    before = torch.get_rng_state()
    shown = [show(augment, 5, seed, resize=resize) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert all(torch.equal(show(augment, 5, seed, resize=resize), shown[seed]) for seed in range(8))
    torch.set_rng_state(before)
    assert len({one.numpy().tobytes() for one in shown}) >= 2
    assert all(one.shape == (3, 56, 56) and one.dtype == torch.uint8 for one in shown)


def test_seeds_are_told_apart_by_every_number() -> None:
    draws = set()
    for numbers in ((0, 1, 2, 0), (0, 1, 2, 1), (0, 2, 1, 0), (1, 0, 2, 0)):
        with seeded(*numbers):
            draws.add(torch.rand(1).item())
    assert len(draws) == 4


def test_strong_erases_a_quarter_with_the_mean_colour() -> None:
    black = Image.new("RGB", (64, 64))
    grey = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    view = build_view("strong", image_size=32)
    erase = view.drawn.transforms[-1]
    erased = 0
    for seed in range(80):
        with seeded(seed):
            found = (erase(pixels(black)) == grey).all(0)
        rows, columns = found.any(1), found.any(0)
        erased += int(found.any())
        assert found.sum() == rows.sum() * columns.sum()  # one box
    assert 8 < erased < 34


def test_magnitude_nine_of_ten_turns_by_27_degrees() -> None:
    policy = next(step for step in build_view("strong", image_size=32).drawn.transforms if hasattr(step, "magnitude"))
    degrees = policy._AUGMENTATION_SPACE["Rotate"][0](policy.num_magnitude_bins, 32, 32)
    assert float(degrees[policy.magnitude]) == pytest.approx(27)
    assert policy.num_ops == 2


def test_contrastive_takes_a_fifth_of_the_views_to_grey() -> None:
    grey = 0
    for seed in range(100):
        shown = show("contrastive", seed, size=16)
        grey += int(torch.equal(shown[0], shown[1]) and torch.equal(shown[1], shown[2]))
    assert 8 < grey < 35


def test_unknown_names_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"unknown augmentation 'stong'. Did you mean 'strong'\?"):
        build_view("stong", image_size=32)
    with pytest.raises(ConfigError, match=r"unknown resize 'croop'. Did you mean 'crop'\? Known: crop, squash."):
        build_view("none", image_size=32, resize="croop")
