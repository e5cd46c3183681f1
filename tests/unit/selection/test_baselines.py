"""The baselines of whole tensors and of added modules: where they go, how large they are, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_model
from toyvit import FAMILIES, toy_classifier

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.models.sam.vit import build_vit
from samtune.selection import SELECTORS, Addition, Selection, picked, select

MODELS = ("sam", *FAMILIES)


def build(family: str) -> Backbone:
    return toy_model() if family == "sam" else toy_classifier(family)


def chosen(model: Backbone, name: str, **options: Any) -> Selection:
    """What the method itself picks."""
    return SELECTORS[name].function(model, None, **options)


# --- whole tensors


@pytest.mark.parametrize("family", MODELS)
def test_full_and_linear_are_the_ends(family: str) -> None:
    model = build(family)
    roles = model.roles()
    everything = select(model, None, name="full")
    assert set(everything.whole) == {name for name, role in roles.items() if role != "fixed"}
    nothing = select(model, None, name="linear")
    assert {roles[name] for name in nothing.whole} == {"decoder" if family == "sam" else "head"}
    assert not everything.additions and not nothing.additions and not nothing.entries


@pytest.mark.parametrize("family", MODELS)
def test_bias_is_every_shift_of_the_backbone(family: str) -> None:
    model = build(family)
    outside = ("mask_decoder.", "prompt_encoder.", model.head_module() or "mask_decoder.")
    shifts = {
        n for n, _ in model.net.named_parameters() if n.endswith((".bias", ".gamma")) and not n.startswith(outside)
    }
    assert set(chosen(model, "bias").whole) == shifts


def test_bias_of_sam_vit_b_is_the_published_one() -> None:
    with torch.device("meta"):
        model = build_vit("sam_vit_b", checkpoint="random", image_size=64)
    sizes = {n: p.numel() for n, p in model.net.named_parameters()}
    biases = sum(sizes[n] for n in chosen(model, "bias").whole)
    assert biases == 102_656
    assert biases + sum(s for n, s in sizes.items() if n.startswith("mask_decoder.")) == 4_160_996  # the paper's 4.16 M


@pytest.mark.parametrize("family", MODELS)
def test_partial_is_the_last_blocks(family: str) -> None:
    model = build(family)
    parts, depth = model.parts(), len(model.block_modules())
    for blocks in range(1, depth + 1):
        last = {f"block {index}" for index in range(depth - blocks, depth)}
        assert set(chosen(model, "partial", blocks=blocks).whole) == {n for n, label in parts.items() if label in last}
    with pytest.raises(ConfigError, match=rf"blocks is {depth + 1}, but \S+ has {depth} blocks: that is the largest"):
        chosen(model, "partial", blocks=depth + 1)


# --- added modules


@pytest.mark.parametrize(("family", "targets"), [("sam", ("qkv", "fc2")), ("swin", ("proj",)), ("convnext", ["fc1"])])
def test_lora_is_on_each_target(family: str, targets: Any) -> None:
    model = build(family)
    found = select(model, None, name="lora", rank=3, alpha=6, targets=targets, decoder=False)
    modules = [m for target in targets for m in model.linears()[target]]
    assert found.additions == tuple(Addition("lora", m, None, {"rank": 3, "alpha": 6}) for m in modules)
    assert all(isinstance(model.net.get_submodule(m), torch.nn.Linear) for m in modules if family != "convnext")
    assert found.names() == [] and found.merges


def test_lora_of_scale_one_by_default() -> None:
    assert chosen(toy_model(), "lora", rank=4).additions[0].options == {"rank": 4, "alpha": 4.0}


def test_adapters_follow_the_sublayers() -> None:
    model = toy_model()
    found = chosen(model, "adapter", width=5, places=("attention", "mlp")).additions
    assert [a.module for a in found] == [f"image_encoder.blocks.{i}.{s}" for s in ("attn", "mlp") for i in (0, 1)]
    assert all(a.kind == "adapter" and a.options == {"width": 5, "dim": 32} for a in found)
    convnext = chosen(toy_classifier("convnext"), "adapter").additions
    assert [a.options["dim"] for a in convnext] == [8, 16, 16, 32]
    parallel = chosen(model, "adaptformer").additions
    assert [(a.kind, a.module) for a in parallel] == [("adaptformer", f"image_encoder.blocks.{i}.mlp") for i in (0, 1)]
    assert parallel[0].options == {"width": 64, "dim": 32, "scale": 0.1}


@pytest.mark.parametrize("family", MODELS)
def test_ssf_follows_every_operation_of_the_backbone(family: str) -> None:
    model = build(family)
    roles = model.roles()
    found = {a.module: a.options for a in chosen(model, "ssf").additions}
    for name, module in model.net.named_modules():
        inside = roles.get(f"{name}.weight") not in (None, "head", "decoder", "fixed")
        assert (name in found) == inside, name
        if inside:
            weight: Any = module.weight
            assert found[name] == {"dim": weight.shape[0], "shift": int(module.bias is not None)}
    if family == "swin":
        assert found["layers.1.downsample.reduction"]["shift"] == 0
    if family == "sam":
        assert found["image_encoder.neck.3"] == {"dim": 32, "shift": 1}  # its shift has the role of a bias
        assert found["image_encoder.neck.2"]["shift"] == 0


def test_prompts_live_in_plain_vits() -> None:
    model = toy_classifier("vit")
    shallow, deep = (chosen(model, name, prompts=3).additions for name in ("vpt_shallow", "vpt_deep"))
    assert shallow == (Addition("prompt", "blocks.0", None, {"count": 3, "dim": 32, "until": "blocks.1"}),)
    assert deep == tuple(
        Addition("prompt", f"blocks.{i}", None, {"count": 3, "dim": 32, "until": f"blocks.{i}"}) for i in (0, 1)
    )


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_mlp_is_before_the_head(family: str) -> None:
    model = toy_classifier(family)
    assert chosen(model, "mlp", layers=3).additions == (
        Addition("mlp", str(model.head_module()), None, {"layers": 3, "dim": 32}),
    )


# --- sizes, against what the modules hold

SIZES = {
    ("lora", "sam"): 2 * 8 * (32 + 96),
    ("lora", "vit"): 2 * 8 * (32 + 96),
    ("lora", "swin"): 8 * (16 + 48) + 2 * 8 * (32 + 96),
    ("adapter", "sam"): 2 * (2 * 32 * 8 + 8 + 32),
    ("adapter", "convnext"): sum(2 * d * 8 + 8 + d for d in (8, 16, 16, 32)),
    ("adaptformer", "vit"): 2 * (2 * 32 * 64 + 64 + 32),
    ("ssf", "vit"): 2 * (32 + 2 * (32 + 96 + 32 + 32 + 128 + 32) + 32),
    ("vpt_shallow", "vit"): 320,
    ("vpt_deep", "vit"): 640,
    ("mlp", "vit"): 2 * (32 * 32 + 32),
    ("partial", "vit"): 32 * (96 + 32 + 128 + 128),
    ("full", "vit"): 32 * (2 * (96 + 32 + 128 + 128) + 192 + 17 + 1),
    ("bias", "sam"): 0,
    ("linear", "sam"): 0,
}


@pytest.mark.parametrize(("name", "family"), SIZES)
def test_sizes(name: str, family: str) -> None:
    model = build(family)
    assert SELECTORS[name].size(model) == picked(model, chosen(model, name)) == SIZES[name, family]


def test_which_methods_start_as_the_base_and_which_merge() -> None:
    assert {n for n, row in SELECTORS.items() if not row.identity} == {"vpt_shallow", "vpt_deep", "mlp"}
    beside = {"adapter", "adaptformer", "vpt_shallow", "vpt_deep", "mlp"}
    assert {n for n, row in SELECTORS.items() if not row.merges} == beside
    model = toy_classifier("vit")
    for name in set(SELECTORS) - {"gps", "grft", "spt"}:
        assert SELECTORS[name].merges == chosen(model, name).merges


# --- what does not fit


@pytest.mark.parametrize(
    ("family", "name", "options", "message"),
    [
        ("sam", "lora", {"targets": ("qvk",)}, r"targets has qvk; toy offers qkv, proj, fc1, fc2\."),
        ("sam", "lora", {"targets": ()}, r"targets is empty; toy offers qkv, proj"),
        ("convnext", "lora", {"targets": ("qkv",)}, r"targets has qkv; convnext_tiny offers fc1, fc2\."),
        ("sam", "lora", {"rank": 33}, r"rank is 33, but \S+qkv\.weight is a matrix of 96 x 32: the largest rank is 32"),
        ("sam", "adapter", {"places": ("head",)}, r"places has head; toy offers attention, mlp\."),
        ("convnext", "adapter", {"places": ("attention",)}, r"places has attention; convnext_tiny offers mlp\."),
        ("sam", "mlp", {}, r"which toy does not have; .*select\.name=linear"),
        ("sam", "vpt_deep", {}, r"name=vpt_deep needs a plain ViT.*toy is none.*: lora, adapter, adaptformer, ssf"),
        ("swin", "vpt_shallow", {}, r"name=vpt_shallow needs a plain ViT.*swin\S+ is none.*lora, adapter"),
        ("sam", "lora", {"alpha": 0}, r"select\.alpha: 0, expected a value > 0"),
        ("sam", "adapter", {"width": 0}, r"select\.width: 0, expected a value >= 1"),
    ],
)
def test_what_does_not_fit(family: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(build(family), None, name=name, **options)
