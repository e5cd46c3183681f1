"""GPS against its formula, and the counts of the paper on SAM ViT-B.

The counts below are those of Zhang et al., CVPR 2024 (4.22 M for SAM); they follow from shapes alone, so they are
taken from a model without memory behind it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import toy_model

from samtune.errors import ConfigError
from samtune.models.sam.model import SamModel
from samtune.models.sam.vit import build_vit
from samtune.selection import SELECTORS, Needs, Selection, select
from samtune.selection.gps import gps
from samtune.selection.selection import check_selection
from samtune.tuning import count, count_by_block
from samtune.types import Granularity, Scores


def scores_of(model: SamModel, sums: dict[str, Tensor] | None = None) -> Scores:
    return Scores(sums or {n: torch.randn(p.shape) for n, p in model.net.named_parameters()}, 1, 0, "hash")


def reference(gradient: Tensor, per_neuron: int) -> list[int]:
    """Section 3.1: for each neuron the K inputs of the largest |gradient|, the first among equals."""
    rows = gradient.reshape(gradient.shape[0], -1).tolist()
    chosen = []
    for number, row in enumerate(rows):
        order = sorted(range(len(row)), key=lambda column, row=row: (-abs(row[column]), column))
        chosen += [number * len(row) + column for column in order[:per_neuron]]
    return sorted(chosen)


@pytest.mark.parametrize("per_neuron", [1, 2, 5, 32])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_selects_what_the_formula_says(per_neuron: int, ties: bool) -> None:
    model = toy_model()
    scores = scores_of(model)
    if ties:
        for total in scores.sums.values():
            total.mul_(2).round_()  # few values, both signs, many zeros
    selection = gps(model, scores, per_neuron=per_neuron)
    expected = {name for name, role in model.roles().items() if role in ("linear", "conv")}
    assert set(selection.entries) == expected and selection.whole == ()
    for name, indices in selection.entries.items():
        assert indices.dtype == torch.int64
        assert indices.tolist() == reference(scores.sums[name], per_neuron), name


def test_signs_do_not_matter_and_fused_qkv_rows_are_neurons() -> None:
    model = toy_model()
    scores = scores_of(model)
    negative = scores_of(model, {name: -total for name, total in scores.sums.items()})
    first, second = gps(model, scores), gps(model, negative)
    assert all(torch.equal(first.entries[name], second.entries[name]) for name in first.entries)
    assert len(first.entries["image_encoder.blocks.0.attn.qkv.weight"]) == 3 * 32
    assert len(first.entries["image_encoder.neck.2.weight"]) == 32  # 3 x 3 convolution: one entry per output


def test_all_equal_scores_give_the_lowest_index() -> None:
    model = toy_model()
    zeros = scores_of(model, {n: torch.zeros(p.shape) for n, p in model.net.named_parameters()})
    for name, indices in gps(model, zeros, per_neuron=2).entries.items():
        inputs = model.net.get_parameter(name)[0].numel()
        assert (indices % inputs).view(-1, 2).tolist() == [[0, 1]] * (len(indices) // 2)


@pytest.mark.parametrize("per_neuron", [0, -1])
def test_k_below_one_is_refused(per_neuron: int) -> None:
    with pytest.raises(ConfigError, match=rf"select\.per_neuron: {per_neuron}, expected a value >= 1"):
        select(toy_model(), None, name="gps", per_neuron=per_neuron)


def test_k_larger_than_a_row_is_refused() -> None:
    model = toy_model()
    with pytest.raises(ConfigError, match=r"per_neuron is 33, but the neurons of \S+ have 32 inputs.*the largest K"):
        select(model, scores_of(model), name="gps", per_neuron=33)
    with pytest.raises(ConfigError, match=r"is 33, but .* have 32 inputs"):
        select(model, scores_of(model), name="gps", per_neuron=33, level="layer")


# --- the variants of Tab. 6


def reference_top(values: list[tuple[float, str, int]], count: int) -> dict[str, list[int]]:
    """The entries of the largest values, (value, tensor, index), the first among equals."""
    chosen: dict[str, list[int]] = {}
    for _, name, index in sorted(values, key=lambda item: -item[0])[:count]:  # sorted is stable
        chosen.setdefault(name, []).append(index)
    return {name: sorted(indices) for name, indices in chosen.items()}


def listed(table: dict[str, Tensor]) -> list[tuple[float, str, int]]:
    return [(abs(v), name, i) for name, t in table.items() for i, v in enumerate(t.flatten().tolist())]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("per_neuron", [1, 3])
def test_levels_layer_and_net_take_as_many_from_a_larger_pool(per_neuron: int, ties: bool) -> None:
    model = toy_model()
    scores = scores_of(model)
    if ties:
        for total in scores.sums.values():
            total.mul_(2).round_()
    names = [name for name, role in model.roles().items() if role in ("linear", "conv")]
    tables = {name: scores.sums[name] for name in names}
    rows = {name: len(table) for name, table in tables.items()}
    layer = gps(model, scores, per_neuron=per_neuron, level="layer").entries
    net = gps(model, scores, per_neuron=per_neuron, level="net").entries
    for name in names:
        expected = reference_top(listed({name: tables[name]}), per_neuron * rows[name])
        assert layer[name].tolist() == expected[name], name
    expected = reference_top(listed(tables), per_neuron * sum(rows.values()))
    assert {name: indices.tolist() for name, indices in net.items()} == expected


def test_level_net_may_take_more_than_a_neuron_has() -> None:
    model = toy_model()
    weights = [p for n, p in model.net.named_parameters() if model.roles()[n] in ("linear", "conv")]
    largest = sum(p.numel() for p in weights) // sum(len(p) for p in weights)
    selection = gps(model, scores_of(model), per_neuron=largest, level="net")
    assert sum(len(i) for i in selection.entries.values()) == largest * sum(len(p) for p in weights)
    with pytest.raises(ConfigError, match=rf"is {largest + 1}, but .* have {largest} inputs in the mean"):
        select(model, scores_of(model), name="gps", per_neuron=largest + 1, level="net")


@pytest.mark.parametrize("level", ["neuron", "layer", "net"])
def test_magnitude_is_the_gradient_rule_on_weights(level: str) -> None:
    model = toy_model()
    weights = scores_of(model, {name: p.detach() for name, p in model.net.named_parameters()})
    found = select(model, None, name="gps", criterion="magnitude", level=level).entries
    expected = gps(model, weights, level=level).entries  # type: ignore[arg-type]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("level", ["neuron", "net"])
def test_random_entries_follow_the_seed(level: str) -> None:
    model = toy_model()
    first, again, other = (
        select(model, None, name="gps", criterion="random", level=level, seed=seed).entries for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert sum(map(len, first.values())) == sum(map(len, other.values()))


def test_only_the_gradient_needs_a_scoring_pass() -> None:
    needs = SELECTORS["gps"].needs
    assert needs() == needs(level="net") == Needs("contrastive", per="batch", squares=False)
    assert needs(criterion="magnitude") is None and needs(criterion="random", seed=3) is None


# --- the counts of SAM ViT-B

ENCODER = 89_670_912
SELECTED = 84_224  # K = 1
ENCODER_BIASES = 84_224  # 83,712 of linear and conv layers, 512 shifts of the neck's two norms
MASK_DECODER = 4_058_340
NO_MASK_EMBEDDING = 256
TOTAL = 4_227_044  # the paper's 4.22 M
IDLE = 552_036  # of the decoder, without gradient from mask 0: IoU head 132,612 and hypernetworks 1 to 3
BIAS_BASELINE = 4_160_996  # the paper's 4.16 M: all encoder biases, 102,656, and the mask decoder


@pytest.fixture(scope="module")
def vit_b() -> SamModel:
    with torch.device("meta"):
        return build_vit("sam_vit_b", checkpoint="random", image_size=64)


@pytest.fixture(scope="module")
def selection(vit_b: SamModel) -> Selection:
    zeros = {name: torch.zeros(()).expand(p.shape) for name, p in vit_b.net.named_parameters()}
    return select(vit_b, Scores(zeros, 1, 0, "hash"), name="gps", per_neuron=1)


def numbers(model: SamModel, prefix: str, suffix: str = "") -> int:
    return sum(p.numel() for n, p in model.net.named_parameters() if n.startswith(prefix) and n.endswith(suffix))


def test_sizes_of_sam_vit_b(vit_b: SamModel) -> None:
    assert numbers(vit_b, "image_encoder.") == ENCODER
    assert numbers(vit_b, "mask_decoder.") == MASK_DECODER
    assert numbers(vit_b, "prompt_encoder.no_mask_embed.") == NO_MASK_EMBEDDING
    assert numbers(vit_b, "mask_decoder.iou_prediction_head.") == 132_612
    assert (
        132_612 + sum(numbers(vit_b, f"mask_decoder.output_hypernetworks_mlps.{mask}.") for mask in (1, 2, 3)) == IDLE
    )


def test_gps_counts_of_sam_vit_b(vit_b: SamModel, selection: Selection) -> None:
    counts = count(vit_b, selection)
    assert counts.selected == SELECTED
    assert counts.bias == ENCODER_BIASES
    assert counts.decoder == MASK_DECODER + NO_MASK_EMBEDDING
    assert (counts.norm, counts.head, counts.added) == (0, 0, 0)
    assert counts.total == TOTAL
    every = sum(p.numel() for p in vit_b.parameters())
    assert counts.percent == pytest.approx(100 * TOTAL / every)
    check_selection(selection, vit_b)


def test_counts_by_block_add_up(vit_b: SamModel, selection: Selection) -> None:
    rows = count_by_block(vit_b, selection)
    assert sum(amount for _, _, amount in rows) == TOTAL
    assert sum(amount for _, role, amount in rows if role in ("linear", "conv")) == SELECTED
    table = {(block, role): amount for block, role, amount in rows}
    assert table["block 0", "linear"] == table["block 11", "linear"] == (3 + 1 + 4 + 1) * 768
    assert table["patch_embed", "conv"] == 768 and table["neck", "conv"] == table["neck", "bias"] == 512


def test_bias_baseline_of_sam_vit_b(vit_b: SamModel) -> None:
    every_bias = numbers(vit_b, "image_encoder.", ".bias")
    assert every_bias == 102_656
    assert every_bias + MASK_DECODER == BIAS_BASELINE
    roles = vit_b.roles()
    linear_and_conv = sum(
        vit_b.net.get_parameter(n).numel() for n, role in roles.items() if role == "bias" and ".neck." not in n
    )
    assert linear_and_conv == 83_712


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"vpt_shallow", "vpt_deep", "mlp"}))
def test_no_selector_of_sam_vit_b_touches_what_is_fixed(name: str, vit_b: SamModel) -> None:
    zeros = {n: torch.zeros(()).expand(p.shape) for n, p in vit_b.net.named_parameters()}
    per: Granularity = "sample" if name == "spt" else "batch"
    chosen = select(vit_b, Scores(zeros, 1, 0, "hash", squares=zeros, per=per), name=name)
    roles = vit_b.roles()
    assert {roles[n] for n in chosen.names()} <= {"linear", "conv", "bias", "norm", "position", "decoder"}
    assert all(a.module.startswith("image_encoder.") for a in chosen.additions)
