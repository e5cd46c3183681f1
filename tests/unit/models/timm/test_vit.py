"""Classifiers: what they are in timm, what their parameters mean, and which settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from toyvit import FAMILIES, SIZE, labelled_batch, toy_classifier

from samtune.errors import CheckpointError, ConfigError
from samtune.models.timm.families import OWN, timm_name
from samtune.models.timm.model import Classifier, build_classifier
from samtune.selection import SELECTORS

VIT, VIT_OPTIONS = FAMILIES["vit"]


def large(name: str, **options: Any) -> Classifier:
    """A model of the papers without memory."""
    with torch.device("meta"):
        return build_classifier(name, classes=100, checkpoint="random", **options)


def counts(model: Classifier) -> dict[str, int]:
    found: dict[str, int] = {}
    roles = model.roles()
    for name, parameter in model.net.named_parameters():
        found[roles[name]] = found.get(roles[name], 0) + parameter.numel()
    return found


@pytest.mark.parametrize(
    ("name", "blocks", "expected"),
    [
        (
            "vit_base_patch16_224.augreg_in21k",
            12,
            # methods.md: biases of linear and conv layers 83,712; class token and 197 positions of width 768
            {"bias": 83_712, "position": 768 + 197 * 768, "norm": 25 * 2 * 768, "head": 76_900},
        ),
        # 9 d for each block of width d, and the patch embedding
        ("swin_base_patch4_window7_224.ms_in22k", 24, {"bias": 9 * 12_032 + 128, "head": 102_500}),
        # 7 d for each block with its layer scale; the stem and three downsamplings
        ("convnext_base.fb_in22k", 36, {"bias": 7 * 18_048 + 128 + 1_792, "head": 102_500}),
    ],
)
def test_roles_of_the_models_of_the_papers(name: str, blocks: int, expected: dict[str, int]) -> None:
    model = large(name)
    found = counts(model)
    assert {role: found[role] for role in expected} == expected
    assert sum(found.values()) == sum(p.numel() for p in timm.create_model(name, num_classes=100).parameters())
    assert len(model.block_modules()) == blocks
    assert model.image_size == 224 and model.interpolation == "bicubic"
    biases = {n for n, module in model.net.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
    roles = model.roles()
    owners = {n.rpartition(".")[0] for n, role in roles.items() if role == "bias" and n.endswith(".bias")}
    assert owners == {n for n in biases - {model.head_module()} if model.net.get_submodule(n).bias is not None}


def test_counts_of_gps_on_vit_b() -> None:
    """methods.md: one entry for each of the 83,712 neurons; GRFT's 65,280 are in its own tests."""
    assert SELECTORS["gps"].size(large("vit_base_patch16_224.augreg_in21k"), per_neuron=1) == 83_712


def test_layer_scales_of_convnext_train_with_the_biases() -> None:
    model = large("convnext_base.fb_in22k")
    roles = model.roles()
    gammas = [name for name in roles if name.endswith("gamma")]
    assert len(gammas) == 36 and {roles[name] for name in gammas} == {"bias"}


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_base_patch16_224.augreg_in21k", (0.5,) * 3, (0.5,) * 3),
        ("swin_tiny_patch4_window7_224.ms_in22k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_base_patch16_224.mocov3", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_base_patch16_224.mae", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_mini", (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_normalisation_is_the_checkpoints(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    small = {} if name == "vit_mini" or name.startswith("swin") else {"depth": 1, "embed_dim": 24, "num_heads": 2}
    model = build_classifier(name, classes=2, checkpoint="random", **small)
    assert torch.allclose(model.pixel_mean.flatten(), 255 * torch.tensor(mean))
    assert torch.allclose(model.pixel_std.flatten(), 255 * torch.tensor(std))
    assert not {"pixel_mean", "pixel_std"} & model.net.state_dict().keys()
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert torch.allclose(model.normalise(white).flatten(), (1 - torch.tensor(mean)) / torch.tensor(std), atol=1e-5)


def test_vit_mini_is_what_the_guide_says() -> None:
    model = build_classifier("vit_mini", classes=5, checkpoint="random")
    assert model.image_size == 64 and len(model.block_modules()) == 6
    assert model.net.get_parameter("pos_embed").shape == (1, 65, 192)
    assert model.net.get_submodule("blocks.0.attn").num_heads == 3
    name, options = timm_name("vit_mini")
    timm.create_model(name, num_classes=5, **options).load_state_dict(model.net.state_dict(), strict=True)
    assert set(OWN) == {"tf_efficientnet_lite0", "vit_mini", "vit_base_patch16_224.mocov3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_depends_on_the_seed_alone(family: str) -> None:
    name, options = FAMILIES[family]
    one, again, other = (build_classifier(name, classes=3, checkpoint="random", seed=s, **options) for s in (1, 1, 2))
    weight = f"{one.head_module()}.weight"
    for model, same in ((again, True), (other, False)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), model.parameters(), strict=True)) == same
        assert torch.equal(one.net.get_parameter(weight), model.net.get_parameter(weight)) == same
    assert (
        0.01 < float(one.net.get_parameter(weight).detach().std()) < 0.03
    )  # a head of zeros would give the scores no gradient
    assert not one.net.get_parameter(f"{one.head_module()}.bias").any()
    assert (one.head_seed, one.options) == (1, {k: v for k, v in options.items() if k != "image_size"})


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_classifier(VIT, classes=3, checkpoint="random", **VIT_OPTIONS)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_memory_only(family: str) -> None:
    batch, gradients = labelled_batch(), []
    for on in (False, True):
        model = toy_classifier(family).train()
        assert model.checkpointing is False
        model.checkpointing = on
        assert model.checkpointing is on
        model(batch).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    model.checkpointing = False
    assert not any(getattr(module, "grad_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_is_for_training_only(family: str) -> None:
    name, options = FAMILIES[family]
    plain = build_classifier(name, classes=3, checkpoint="random", **options)
    dropping = build_classifier(name, classes=3, checkpoint="random", drop_path=0.9, **options)
    dropping.net.load_state_dict(plain.net.state_dict())
    batch = labelled_batch()
    assert not dropping.training and torch.equal(plain(batch), dropping(batch))
    for parameter in (p for n, p in dropping.net.named_parameters() if n.endswith("gamma")):
        torch.nn.init.ones_(parameter)  # ConvNeXt's blocks start at 1e-6 of their size
    dropping.train()
    assert any(not torch.equal(dropping(batch), plain(batch)) for _ in range(2))
    assert len({float(dropping(batch).detach().sum()) for _ in range(20)}) > 1  # anew at every pass


def test_image_size() -> None:
    vit = build_classifier(VIT, classes=3, checkpoint="random", **VIT_OPTIONS | {"image_size": 48})
    assert vit.image_size == 48 and vit.net.get_parameter("pos_embed").shape[1] == 37
    name, options = FAMILIES["convnext"]
    convnext = build_classifier(name, classes=3, checkpoint="random", **options | {"image_size": 96})
    assert convnext.image_size == 96
    assert build_classifier(name, classes=3, checkpoint="random", dims=(8, 8, 8, 8)).image_size == 224
    assert vit.features(labelled_batch_of(48)).shape == (2, 32)


def labelled_batch_of(size: int) -> Any:
    batch = labelled_batch(size=2)
    batch.__dict__["images"] = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    return batch


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_bse_patch16_224", {}, r"timm has no model 'vit_bse_patch16_224'\. Similar names: vit_base_patch16_224"),
        ("vit_mni", {}, "Similar names: vit_mini"),
        (f"{VIT}.mae", {}, rf"timm has no weights '{VIT}\.mae'\. Known: {VIT}\.augreg_in21k, "),
        ("resnet18", {}, r"resnet18 is a ResNet, .*Known: VisionTransformer, SwinTransformer, EfficientNet, ConvNeXt"),
        ("deit_tiny_distilled_patch16_224", {}, "no single linear head"),
        (VIT, {"image_size": 30, "patch_size": 8}, r"image_size is 30, but .* multiple of 8; the nearest is 32"),
        (VIT, {"image_size": 0}, r"image_size"),
        (VIT, {"colour": 3}, r"timm can't build .*'colour': 3.*Check model\.options"),
        (VIT, {"img_size": 32}, r"model\.options has img_size: give model\.image_size instead"),
        (VIT, {"drop_path_rate": 0.1}, r"give train\.drop_path instead"),
        (VIT, {"checkpoint_path": "a.pth"}, r"give model\.checkpoint instead"),
        (VIT, {"in_chans": 1}, r"model\.options has in_chans: give images, which are read as RGB, instead"),
        (VIT, {"head": "checkpoint"}, r"model\.head=checkpoint needs weights, but model\.checkpoint is random"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_classifier(name, classes=3, checkpoint="random", **options)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("convnext", {"image_size": 16}, r"convnext_tiny can't run on an image of 16 x 16 pixels \(.+\)\. Check "),
        ("vit", {"global_pool": ""}, r"returns \(1, 17, 3\) for one image, not \(1, 3\)\. Check "),
    ],
)
def test_what_only_fails_when_it_runs(family: str, options: dict[str, Any], message: str) -> None:
    name, own = FAMILIES[family]
    side = (own | options)["image_size"]
    with pytest.raises(ConfigError, match=rf"{message}model\.options \(.+\) and model\.image_size \({side}\)\."):
        build_classifier(name, classes=3, checkpoint="random", **own | options)


def test_the_run_at_the_start_changes_nothing() -> None:
    model = build_classifier(VIT, classes=3, checkpoint="random", drop_path=0.5, **VIT_OPTIONS)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_model_without_a_published_address() -> None:
    with pytest.raises(CheckpointError, match=r"mocov3 has no weights on .*vit-b-300ep\.pth\.tar of MoCo-v3"):
        build_classifier("vit_base_patch16_224.mocov3", classes=2, depth=1, embed_dim=24, num_heads=2)


def test_toy_sizes() -> None:
    assert all(toy_classifier(family).image_size == SIZE for family in FAMILIES)
