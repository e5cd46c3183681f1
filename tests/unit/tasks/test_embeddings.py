"""Cached embeddings: the same logits, one encoder pass per image, and no use where they would be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import prompts_of, toy_batch, toy_model
from toy_backbone import build_toy_net

from samtune.errors import CheckpointError, ConfigError
from samtune.models.sam.cached import CachedEncoder
from samtune.models.sam.vit import VitSam
from samtune.selection import Selection, select
from samtune.tasks.masks.config import SegmentationConfig
from samtune.tasks.masks.task import SegmentationTask
from samtune.tasks.pixels import check_embeddings
from samtune.tasks.semantic.config import SemanticConfig
from samtune.tasks.semantic.losses import BoxPractice
from samtune.tasks.semantic.task import SemanticTask

LINEAR = Selection({}, ("mask_decoder.mask_tokens.weight",))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each encoder pass."""
    passes: list[int] = []
    encode = VitSam.encode

    def counting(self: VitSam, pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(VitSam, "encode", counting)
    return passes


def test_logits_are_those_of_the_model_and_each_image_is_encoded_once(tmp_path: Path, counted: list[int]) -> None:
    model, batch = toy_model(), toy_batch(prompts=prompts_of("box"))
    expected = model(batch)
    counted.clear()
    cached = CachedEncoder(model, tmp_path / "new", base_hash="a", autocast=None)
    assert torch.equal(cached(batch), expected) and counted == [2]
    assert torch.equal(cached(batch), expected) and counted == [2]
    # single images may round differently from batches, but they are found
    assert torch.allclose(cached(batch.split(1)[1]), expected[1:], atol=1e-5) and counted == [2]
    cached(toy_batch(seed=1))
    assert counted == [2, 2]
    fresh = CachedEncoder(model, tmp_path / "new", base_hash="a", autocast=None)
    assert torch.equal(fresh(batch), expected) and counted == [2, 2]


def test_another_model_precision_or_picture_never_meets_an_embedding(tmp_path: Path, counted: list[int]) -> None:
    model, batch = toy_model(), toy_batch()
    CachedEncoder(model, tmp_path, base_hash="a", autocast=None)(batch)
    CachedEncoder(model, tmp_path, base_hash="b", autocast=None)(batch)
    CachedEncoder(model, tmp_path, base_hash="a", autocast=torch.bfloat16)(batch)
    CachedEncoder(model, tmp_path, base_hash="a", autocast=None)(replace(batch, sizes_input=((64, 64), (64, 64))))
    assert counted == [2, 2, 2, 2]
    assert len(list(tmp_path.glob("*.safetensors"))) == 8


def test_the_decoder_gets_its_gradient(tmp_path: Path) -> None:
    model, batch = toy_model().requires_grad_(False), toy_batch()
    weight = model.net.mask_decoder.mask_tokens.weight.requires_grad_(True)
    model(batch).sum().backward()
    expected = weight.grad.clone()
    weight.grad = None
    CachedEncoder(model, tmp_path, base_hash="a", autocast=None)(batch).sum().backward()
    assert torch.equal(weight.grad, expected) and bool(expected.any())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    model, batch = toy_model(), toy_batch()
    cached = CachedEncoder(model, tmp_path, base_hash="a", autocast=None)
    cached(batch)
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"is no cached embedding .*Delete it; it is computed again"):
        cached(batch)


def test_only_decoder_training_may_use_them() -> None:
    model = toy_model()
    check_embeddings(model, LINEAR)
    with pytest.raises(ConfigError, match=r"image_encoder\..*trains.*Leave it empty, or use 'select=\{name: linear\}'"):
        check_embeddings(model, select(model, None, name="bias"))
    with pytest.raises(ConfigError, match=r"qkv\.lora trains"):
        check_embeddings(model, select(model, None, name="lora"))


def semantic_task(folder: Path, **loss: float) -> SemanticTask:
    data, train = {"dir": "data", "augment": "none"}, {"embeddings": folder}
    return SemanticTask(SemanticConfig.model_validate({"data": data, "train": train, "loss": loss}))


@pytest.mark.parametrize("weight", [0.2, 0.0])
def test_maps_of_classes_are_decoded_from_the_same_embeddings(
    weight: float, tmp_path: Path, counted: list[int]
) -> None:
    model, batch = toy_model(), toy_batch()
    model.add_classes(3)
    batch = replace(batch, masks=batch.masks.to(torch.uint8))
    linear = select(model, None, name="linear")
    assert {model.roles()[name] for name in linear.names()} == {"decoder", "head"}
    network = semantic_task(tmp_path, box_weight=weight).network(model, linear, base_hash="a", autocast=None)
    expected = model(batch)
    counted.clear()
    assert torch.equal(network.eval()(batch), expected) and counted == [2]
    if weight:
        plain = BoxPractice(model, model.embed)
        seen = [torch.manual_seed(0) and one.train()(batch) for one in (network, plain)]
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and counted == [2, 2]
    else:
        assert isinstance(network, CachedEncoder)
    with pytest.raises(ConfigError, match=r"image_encoder\..*trains"):
        check_embeddings(model, select(model, None, name="bias"))


def test_a_model_without_such_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.embeddings is not for toy_net, only for sam_lite"):
        semantic_task(tmp_path).network(build_toy_net("toy_net"), Selection({}), base_hash="a", autocast=None)
    data, train = {"dir": "data", "augment": False}, {"embeddings": tmp_path}
    task = SegmentationTask(SegmentationConfig.model_validate({"data": data, "train": train}))
    with pytest.raises(ConfigError, match=r"train\.embeddings is not for toy_net, only for sam_lite"):
        task.network(build_toy_net("toy_net"), Selection({}), base_hash="a", autocast=None)
    assert isinstance(task.network(toy_model(), LINEAR, base_hash="a", autocast=None), CachedEncoder)
