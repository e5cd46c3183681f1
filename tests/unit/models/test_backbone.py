"""What every backbone does, whatever its network."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from toy import toy_batch
from toy_backbone import build_toy_net
from toyvit import labelled_batch

from samtune.models.backbone import Backbone, evaluation_mode
from samtune.models.timm.model import build_classifier
from samtune.selection import select
from samtune.tuning import attach
from samtune.types import AnyBatch


def two_steps(model: Backbone, batch: AnyBatch) -> dict[str, Tensor]:
    """Trains as `linear` does, two steps; returns the buffers that changed."""
    before = {name: tensor.clone() for name, tensor in model.net.named_buffers()}
    optimizer = torch.optim.SGD(attach(model, select(model, None, name="linear")).values(), lr=0.1)
    for _ in range(2):
        model.train()(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor for name, tensor in model.net.named_buffers() if not torch.equal(tensor, before[name])}


def test_running_statistics_stay_while_a_model_trains() -> None:
    model = build_toy_net("theirs")
    assert sum(name.endswith("running_mean") for name, _ in model.net.named_buffers()) == 1
    assert two_steps(model, toy_batch()) == {}


def test_running_statistics_of_a_hybrid_stay() -> None:
    model = build_classifier(
        "vit_small_resnet26d_224", classes=3, checkpoint="random", image_size=32, embed_dim=24, depth=1, num_heads=2
    )
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert two_steps(model, labelled_batch()) == {}


def test_only_layers_with_statistics_stay_in_evaluation_mode() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True), nn.Dropout(),
    )  # fmt: skip
    model = Backbone(network, name="norms", image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert [module.training for module in model.train().net.children()] == [False, False, True, True, False, True]
    assert not any(module.training for module in model.eval().modules())
    assert model.training is False and model.train().training is True


def test_evaluation_mode_gives_each_module_its_own_mode_back() -> None:
    model = build_toy_net("theirs").train()
    model.net.stem.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="no"), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("no")
    assert [module.training for module in model.modules()] == before


def test_the_network_is_the_stock_one() -> None:
    model = build_classifier("vit_tiny_patch16_224", classes=3, checkpoint="random", image_size=32)
    assert type(model.net) is timm.models.vision_transformer.VisionTransformer
    assert not any(name.startswith("pixel_") for name in model.state_dict())
