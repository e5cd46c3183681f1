"""Attach, count and merge, beyond what the contracts of every selection say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from added_cases import additions_of, copied, loss_of, net_of, output_of, same, ssf, train
from torch import nn
from toy import toy_model
from toyvit import toy_classifier

from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition, Selection
from samtune.tuning import attach, count, count_by_block, merge
from samtune.tuning.compact import CompactModule

QKV, FC1 = "blocks.1.attn.qkv", "blocks.0.mlp.fc1"
LORA: dict[str, Any] = {"rank": 2, "alpha": 4}


def adding(*additions: Addition, **parts: Any) -> Selection:
    return Selection(parts.get("entries", {}), parts.get("whole", ()), {}, additions)


def mixed() -> Selection:
    """Returns entries, whole tensors, and additions that fold and that stay, of the toy ViT."""
    return adding(
        Addition("lora", QKV, (0, 32), LORA),
        Addition("lora", QKV, (64, 96), LORA),
        Addition("adapter", "blocks.0.attn", None, {"width": 4, "dim": 32}),
        entries={f"{QKV}.weight": torch.tensor([33 * 32, 40 * 32 + 5]), f"{FC1}.weight": torch.arange(0, 900, 9)},
        whole=("head.weight", "head.bias", "blocks.0.mlp.fc2.bias"),
    )


# --- attach


def test_names_of_what_trains() -> None:
    trained = attach(toy_classifier("vit"), mixed())
    assert list(trained) == [
        f"{QKV}.weight",
        f"{FC1}.weight",
        "head.weight",
        "head.bias",
        "blocks.0.mlp.fc2.bias",
        *(f"{QKV}.lora_{start}.{name}" for start in (0, 64) for name in ("down", "up")),
        *(f"blocks.0.attn.adapter.{layer}.{name}" for layer in ("down", "up") for name in ("weight", "bias")),
    ]


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_model_that_has_an_addition_is_refused(kind: str) -> None:
    model = toy_classifier("vit")
    attach(model, adding(*additions_of(kind, model)))
    with pytest.raises(CheckpointError, match=rf"has an addition already, blocks\.0\.\S+{kind}\S*; attach to a fresh"):
        attach(model, adding())
    if kind == "lora":
        assert attach(merge(model), adding(*additions_of(kind, model)))


REFUSED: dict[str, tuple[str, tuple[Addition, ...], str]] = {
    "unknown kind": ("vit", (Addition("loar", FC1),), "unknown kind of addition 'loar'. Did you mean 'lora'"),
    "unknown host": ("vit", (Addition("lora", "blocks.9", None, LORA),), "adds to 'blocks.9', which this model does"),
    "lora on a norm": (
        "vit",
        (Addition("lora", "blocks.0.norm1", None, LORA),),
        r"puts lora on blocks\.0\.norm1, a LayerNorm: lora needs an nn\.Linear or a pointwise convolution\. Is it",
    ),
    "rows outside": ("vit", (Addition("lora", QKV, (90, 128), LORA),), r"it has 96 rows, not \(90, 128\)"),
    "ssf of another width": (
        "vit",
        (Addition("ssf", FC1, None, {"dim": 7, "shift": 1}),),
        "ssf needs a linear, conv or norm with 7 channels",
    ),
    "ssf on a transposed convolution": (
        "sam",
        (Addition("ssf", "mask_decoder.output_upscaling.0", None, {"dim": 32, "shift": 1}),),
        "ssf needs a linear, conv or norm",
    ),
    "shift without bias": (
        "swin",
        (Addition("ssf", "layers.1.downsample.reduction", None, {"dim": 32, "shift": 1}),),
        "no bias to fold the shift into",
    ),
    "layer of a sequence": (
        "vit",
        (Addition("adapter", "blocks", None, {"width": 2, "dim": 32}),),
        "a Sequential: it would run the addition as one more of its layers",
    ),
    "twice": (
        "vit",
        (Addition("lora", QKV, (0, 32), LORA), Addition("lora", QKV, (0, 64), LORA)),
        r"adds blocks\.1\.attn\.qkv\.lora_0 twice",
    ),
    "name in use": ("vit", (Addition("mlp", "blocks.0", None, {"layers": 1, "dim": 32}),), "has a part of that name"),
    "ssf and lora": (
        "vit",
        (Addition("lora", FC1, None, LORA), Addition("ssf", FC1, None, {"dim": 128, "shift": 1})),
        rf"puts lora, ssf on {FC1}; ssf can't share a host with others: leave one of them out",
    ),
    "dora and lora": (
        "vit",
        (Addition("lora", FC1, None, LORA), Addition("dora", FC1, None, LORA)),
        rf"puts dora, lora on {FC1}; dora can't share a host with others: leave one of them out",
    ),
    "prompt of no block": (
        "vit",
        (Addition("prompt", "blocks.0", None, {"count": 2, "dim": 32, "until": "blocks.7"}),),
        r"prompt tokens at blocks\.7; blocks that take them: blocks\.0 to blocks\.1",
    ),
    "prompt of no plain ViT": (
        "swin",
        (Addition("prompt", "layers.0.blocks.0", None, {"count": 2, "dim": 16, "until": "layers.0.blocks.0"}),),
        "blocks that take them: none; prompts need a plain ViT",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_additions_that_do_not_fit_are_refused_and_change_nothing(case: str) -> None:
    net, additions, message = REFUSED[case]
    model = net_of(net)
    with pytest.raises(CheckpointError, match=message):
        attach(model, adding(*additions))
    assert all(p.requires_grad for p in model.parameters())
    assert same(copied(model), copied(net_of(net)))


# --- counts


SIZES = {
    "lora": 2 * (2 * 2 * (32 + 32) + 3 * (32 + 128)),
    "dora": 2 * (2 * (2 * (32 + 32) + 32) + 3 * (32 + 128) + 128),
    "pissa": 2 * (2 * 2 * (32 + 32) + 3 * (32 + 128)),
    "adapter": 2 * 2 * (2 * 32 * 4 + 4 + 32),
    "adaptformer": 2 * (2 * 32 * 4 + 4 + 32),
    "prompt": 5 * 32,
    "mlp": 2 * (32 * 32 + 32),
    # patch embedding, last norm; per block two norms, qkv, proj, fc1, fc2
    "ssf": 2 * (32 + 32 + 2 * (32 + 32 + 96 + 32 + 128 + 32)),
}


@pytest.mark.parametrize("kind", list(SIZES))
def test_count_of_additions(kind: str) -> None:
    model = net_of("vit")
    selection = adding(*additions_of(kind, model))
    counts = count(model, selection)
    assert counts.added == counts.total == SIZES[kind]
    assert counts.percent == pytest.approx(100 * counts.total / sum(p.numel() for p in net_of("vit").parameters()))


def test_counts_are_the_same_plain_and_attached() -> None:
    model, selection = net_of("vit"), mixed()
    state = torch.get_rng_state()
    before, rows = count(model, selection), count_by_block(model, selection)
    assert same(copied(model), copied(net_of("vit"))) and torch.equal(torch.get_rng_state(), state)
    trained = attach(model, selection)
    assert count(model, selection) == before and count_by_block(model, selection) == rows
    assert before.total == sum(p.numel() for p in trained.values())
    assert (before.selected, before.bias, before.head) == (2 + 100, 32, 3 * 32 + 3)
    assert before.added == 2 * 2 * (32 + 32) + 2 * 32 * 4 + 4 + 32
    merge(model)
    assert count(model, selection) == before  # the adapter stayed


def test_counts_by_block_have_additions_in_the_models_order() -> None:
    model = net_of("vit")
    assert count_by_block(model, mixed()) == [
        ("block 0", "linear", 100),
        ("block 0", "bias", 32),
        ("block 0", "added", 2 * 32 * 4 + 4 + 32),
        ("block 1", "linear", 2),
        ("block 1", "added", 2 * 2 * (32 + 32)),
        ("head", "head", 3 * 32 + 3),
    ]
    layers = adding(*additions_of("mlp", model), *additions_of("prompt", model))
    assert count_by_block(model, layers) == [("block 0", "added", 160), ("head", "added", SIZES["mlp"])]
    sam = toy_model()
    neck = adding(ssf(sam, "image_encoder.neck.0"), ssf(sam, "image_encoder.patch_embed.proj"))
    assert [row[0] for row in count_by_block(sam, neck)] == ["patch_embed", "neck"]


# --- merge


def test_merging_a_mixture() -> None:
    model, selection = net_of("vit"), mixed()
    train(model, attach(model, selection))
    state = copied(model)
    with torch.no_grad():
        tuned = output_of(model)
        merge(model)
        torch.testing.assert_close(output_of(model), tuned, rtol=0, atol=1e-5)
    assert same(copied(model), state)
    assert not any(isinstance(module, CompactModule) for module in model.modules())
    base = net_of("vit").net.state_dict()
    changes = selection.changes({name: tensor.shape for name, tensor in base.items()})
    for name, tensor in base.items():
        if name not in changes:
            assert torch.equal(state[name], tensor), name
    # keys: only the two entries; queries and values: all
    moved = (state[f"{QKV}.weight"] != base[f"{QKV}.weight"]).view(3, -1).sum(1).tolist()
    assert moved[1] == 2 and min(moved[0], moved[2]) > 1000


# --- a base in bf16


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    return copied(net_of("vit"))


def lowered(selection: Selection, steps: int = 2) -> tuple[Backbone, dict[str, nn.Parameter]]:
    model = net_of("vit")
    trained = attach(model, selection, base_dtype=torch.bfloat16)
    for _ in range(steps):
        optimizer = torch.optim.SGD(trained.values(), lr=0.1)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = output_of(model)
        loss_of(output.float()).backward()
        optimizer.step()
    return model, trained


def test_a_lowered_base_trains_fp32_values_that_start_at_the_base(base: dict[str, torch.Tensor]) -> None:
    model, trained = lowered(mixed(), steps=0)
    assert all(p.dtype == torch.float32 for p in trained.values())
    for name, indices in mixed().entries.items():
        assert torch.equal(trained[name].detach(), base[name].flatten()[indices])
    assert model.net.get_submodule("blocks.0.attn.proj")._parameters["weight"].dtype == torch.bfloat16  # type: ignore[union-attr]
    assert model.net.get_parameter("head.weight").dtype == torch.float32


def test_merging_a_lowered_base_restores_it(base: dict[str, torch.Tensor]) -> None:
    selection = mixed()
    model, trained = lowered(selection)
    values = {name: parameter.detach().clone() for name, parameter in trained.items()}
    state = merge(model, base=base).net.state_dict()
    for name, tensor in base.items():
        expected = tensor.clone()
        if name in selection.whole:
            expected = values[name]
        if name in selection.entries:
            expected.view(-1)[selection.entries[name]] = values[name]
        if name == f"{QKV}.weight":
            for start in (0, 64):
                up, down = values[f"{QKV}.lora_{start}.up"].double(), values[f"{QKV}.lora_{start}.down"].double()
                rows = expected[start : start + 32]
                rows.copy_(rows.double() + 2.0 * up @ down)
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], expected), name
    again = {name: tensor.clone() for name, tensor in state.items()}
    assert same(copied(merge(model)), again)  # now it needs no base


def test_merging_a_lowered_base_needs_it() -> None:
    model, _ = lowered(mixed(), steps=0)
    with pytest.raises(
        CheckpointError, match=r"was lowered for training, so merging needs it: give merge\(model, base="
    ):
        merge(model)
