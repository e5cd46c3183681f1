"""EfficientNet classifiers: the one inside the package knows ImageNet, and its parameters are what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from samtune.models.table import build_model
from samtune.selection import select
from samtune.tuning import attach, merge
from samtune.types import LabelledBatch

NAME = "tf_efficientnet_lite0"


def batch_of(*pictures: np.ndarray) -> LabelledBatch:
    """Returns pictures squashed to 224 px."""
    squares = [np.array(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC)) for p in pictures]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return LabelledBatch(images, torch.zeros(len(pictures), dtype=torch.int64), tuple(map(str, range(len(pictures)))))


def test_the_packaged_weights_see_a_cat_and_a_cup() -> None:
    model = build_model(NAME, classes=1000, head="checkpoint")
    with torch.no_grad():
        chances = model(batch_of(data.chelsea(), data.coffee())).softmax(1)
    assert chances.argmax(1).tolist() == [285, 967]  # Egyptian cat, espresso
    # what the published fp32 weights give; these are rounded to fp16
    np.testing.assert_allclose(chances.amax(1).tolist(), [0.77, 0.90], atol=0.01)


def test_roles_parts_and_targets() -> None:
    model = build_model(NAME, classes=3)
    roles, sizes = model.roles(), {n: p.numel() for n, p in model.net.named_parameters()}
    total = {role: sum(s for n, s in sizes.items() if roles[n] == role) for role in set(roles.values())}
    # the trunk of sam_lite and conv_head: 320 x 1280 weights, 1280 scales and as many shifts
    assert total["bias"] == total["norm"] == 19_728 + 1280 and total["head"] == 3 * 1281
    assert total["conv"] == 2_958_848 - 2 * 19_728 + 320 * 1280
    assert list(model.linears()) == ["conv_pw", "conv_pwl"] and list(model.sublayers()) == ["block"]
    assert len(model.block_modules()) == 16 and model.stem_part() == "conv_stem"
    lora = select(model, None, name="lora")
    assert len(lora.additions) == 31  # two in each block but the first


def test_ssf_leaves_out_what_ends_in_an_activation_and_folds() -> None:
    model = build_model("mobilenetv2_035", classes=3, checkpoint="random", image_size=32)
    selection = select(model, None, name="ssf")
    hosts = {addition.module for addition in selection.additions}
    assert "conv_stem" in hosts and "bn1" not in hosts  # with ReLU6 inside
    assert {name for name in hosts if ".bn" in name} == {
        name
        for name, module in model.net.named_modules()
        if isinstance(module, nn.BatchNorm2d) and ".bn" in name and isinstance(module.act, nn.Identity)
    }
    trained = attach(model, selection)
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = LabelledBatch(images, torch.tensor([0, 1]), ("a", "b"))
    with torch.no_grad():
        tuned = model(batch)
        torch.testing.assert_close(merge(model)(batch), tuned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [32, 96])
def test_any_side_works(side: int) -> None:
    model = build_model(NAME, classes=3, image_size=side)
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    assert model(LabelledBatch(images, torch.zeros(1, dtype=torch.int64), ("a",))).shape == (1, 3)
