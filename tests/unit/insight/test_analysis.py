"""Where a selection lies, what two share, and how much of it is noise: against answers known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_model
from toyvit import FAMILIES, toy_classifier

from samtune.errors import CheckpointError, ConfigError, DataError
from samtune.insight.distribution import Amount, Distribution, Shared, distribution, overlap
from samtune.insight.stability import noise, split_halves, stability, standard_error
from samtune.models.backbone import Backbone
from samtune.scoring.score import score
from samtune.selection import select
from samtune.selection.selection import Addition, Selection
from samtune.tasks.pixels import ContrastiveLoss
from samtune.types import Scores

QKV = "image_encoder.blocks.0.attn.qkv.weight"  # (96, 32)
FC2 = "image_encoder.blocks.1.mlp.lin2.weight"  # (32, 128)
PATCH = "image_encoder.patch_embed.proj.weight"  # (32, 3, 16, 16)
BIAS = "image_encoder.blocks.1.mlp.lin2.bias"  # (32,)


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def scores_of(model: Backbone, gradients: int = 3) -> Scores:
    """Returns scores of random gradients."""
    stacks = {name: torch.randn(gradients, *p.shape) for name, p in model.net.named_parameters()}
    sums = {name: stack.sum(0) for name, stack in stacks.items()}
    return Scores(sums, gradients, 0, "", {name: stack.square().sum(0) for name, stack in stacks.items()})


# --- distribution


def test_entries_are_counted_by_part_and_operation() -> None:
    third = 96 * 32 // 3
    chosen = {
        QKV: indices(0, third - 1, third, 3 * third - 1),  # 2 of q, 1 of k, 1 of v
        FC2: indices(5, 6),
        PATCH: indices(7),
        BIAS: indices(1, 2, 3),
    }
    whole = "image_encoder.blocks.0.mlp.lin1.bias"
    found = distribution(toy_model(), Selection(chosen, (whole,)))
    trained = {key: amount.chosen for key, amount in found.cells.items() if amount.chosen}
    assert trained == {
        ("patch_embed", "conv"): 1,
        ("block 0", "q"): 2, ("block 0", "k"): 1, ("block 0", "v"): 1,
        ("block 1", "fc2"): 2, ("block 1", "other"): 3,
    }  # fmt: skip
    assert found.cells["block 0", "q"].entries == third and found.cells["block 1", "other"].entries == 32
    assert found.whole == 128 and found.total.trained == 10
    parts = found.by("part")
    assert list(parts) == ["patch_embed", "block 0", "block 1", "neck"]
    assert {part: found.share(amount) for part, amount in parts.items()} == {
        "patch_embed": 0.1, "block 0": 0.4, "block 1": 0.5, "neck": 0.0,
    }  # fmt: skip
    assert list(found.by("operation")) == ["conv", "q", "k", "v", "proj", "fc1", "fc2", "other"]
    assert found.by("operation")["fc2"] == Amount(2, 0, 2 * 32 * 128)


def test_gps_is_spread_by_the_number_of_neurons() -> None:
    model = toy_model()
    selection = select(model, scores_of(model), name="gps", per_neuron=2)
    found = distribution(model, selection)
    assert [found.cells["block 1", name].chosen for name in ("q", "k", "v", "proj", "fc1", "fc2")] == [
        64, 64, 64, 64, 256, 64,
    ]  # fmt: skip
    assert found.total.chosen == sum(len(found) for found in selection.entries.values())
    assert found.whole == sum(model.net.get_parameter(name).numel() for name in selection.whole)
    assert math.isclose(sum(found.share(amount) for amount in found.cells.values()), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_place_for_each_entry(family: str) -> None:
    model = toy_classifier(family)
    names = [name for name, p in model.net.named_parameters() if p.ndim > 1]
    found = distribution(model, Selection({name: indices(0) for name in names}))
    assert found.total.chosen == len(names)
    assert {part for part in found.by("part") if part.startswith("block")} == {
        f"block {index}" for index in range(len(model.block_modules()))
    }


BLOCK = "image_encoder.blocks.1"


@pytest.mark.parametrize(
    ("addition", "key", "size"),
    [
        (Addition("lora", f"{BLOCK}.attn.qkv", (32, 64), {"rank": 2, "alpha": 0.5}), ("block 1", "k"), 128),
        (Addition("lora", f"{BLOCK}.attn.qkv", None, {"rank": 2, "alpha": 2}), ("block 1", "qkv"), 256),
        (Addition("lora", f"{BLOCK}.mlp.lin2", None, {"rank": 1, "alpha": 1}), ("block 1", "fc2"), 160),
        (Addition("adapter", f"{BLOCK}.attn", None, {"width": 4, "dim": 32}), ("block 1", "attention"), 292),
        (Addition("adaptformer", f"{BLOCK}.mlp", None, {"width": 4, "dim": 32, "scale": 0.1}), ("block 1", "mlp"), 292),
        (Addition("ssf", f"{BLOCK}.norm1", None, {"dim": 32, "shift": 1}), ("block 1", "other"), 64),
        (Addition("ssf", "image_encoder.neck.0", None, {"dim": 32, "shift": 0}), ("neck", "conv"), 32),
    ],
    ids=lambda value: value.name if isinstance(value, Addition) else None,
)
def test_additions_count_where_their_host_is(addition: Addition, key: tuple[str, str], size: int) -> None:
    found = distribution(toy_model(), Selection({}, additions=(addition,)))
    assert {k: amount.added for k, amount in found.cells.items() if amount.added} == {key: size}
    assert found.total.trained == size and found.total.chosen == 0


def test_prompts_and_a_longer_head_count_too() -> None:
    until = "blocks.1"
    additions = (
        Addition("prompt", "blocks.0", None, {"count": 5, "dim": 32, "until": until}),
        Addition("mlp", "head", None, {"layers": 2, "dim": 32}),
    )
    found = distribution(toy_classifier("vit"), Selection({}, additions=additions))
    assert found.cells["block 0", "other"].added == 160
    assert found.cells["head", "other"].added == 2 * (32 * 32 + 32)


def test_an_empty_selection_has_shares_of_zero() -> None:
    found = distribution(toy_model(), Selection({}, (BIAS,)))
    assert found.total.trained == 0 and found.whole == 32
    assert all(found.share(amount) == 0 for amount in found.by("part").values())
    assert Distribution({}, 0).total == Amount()


def test_another_models_selection_is_refused() -> None:
    stranger = Selection({"blocks.0.weight": indices(0)})
    model = toy_model()
    tries: list[Callable[[], object]] = [
        lambda: distribution(model, stranger),
        lambda: overlap(model, Selection({}), stranger),
        lambda: noise(model, scores_of(model), stranger),
    ]
    for attempt in tries:
        with pytest.raises(CheckpointError, match=r"tunes 'blocks\.0\.weight', which this model does not have"):
            attempt()


# --- overlap


def test_a_selection_shares_all_with_itself_and_nothing_with_its_complement() -> None:
    model = toy_model()
    even, odd = Selection({QKV: indices(0, 2, 4), FC2: indices(8)}), Selection({QKV: indices(1, 3)})
    assert overlap(model, even, even).total.jaccard == 1
    assert overlap(model, even, odd).total.jaccard == 0
    assert overlap(model, even, odd).total.both == 0


def test_overlap_is_counted_by_part() -> None:
    first = Selection({QKV: indices(0, 1, 2), FC2: indices(0)})
    second = Selection({QKV: indices(2, 40), FC2: indices(0), PATCH: indices(9)})
    found = overlap(toy_model(), first, second)
    block = found.parts["block 0"]
    assert (block.first, block.second, block.both) == (3, 2, 1) and block.jaccard == 1 / 4
    assert block.expected == 3 * 1 / 32  # 3 and 1 entries in row 0; row 1 has none of the first
    assert found.parts["block 1"].jaccard == 1 and found.parts["patch_embed"].jaccard == 0
    assert math.isnan(found.parts["neck"].jaccard) and math.isnan(found.parts["neck"].expected_jaccard)
    assert (found.total.first, found.total.second, found.total.both) == (4, 4, 2) and found.total.jaccard == 2 / 6


def test_tensors_that_train_whole_are_left_out() -> None:
    first = Selection({QKV: indices(0, 1)}, (FC2, BIAS))
    second = Selection({QKV: indices(1, 2), FC2: indices(0)}, (BIAS,))
    found = overlap(toy_model(), first, second)
    assert found.left_out == (FC2,)  # the bias trains whole in both: nobody would look for it
    assert found.total == Shared(2, 2, 1, 2 * 2 / 32)


def test_the_expected_overlap_is_that_of_random_selections() -> None:
    model, rows, columns, per_row = toy_model(), 96, 32, 4
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Selection:
        order = torch.rand(rows, columns, generator=generator).argsort(dim=1)[:, :per_row].sort(dim=1).values
        return Selection({QKV: (torch.arange(rows)[:, None] * columns + order).flatten()})

    pairs = [overlap(model, drawn(), drawn()).total for _ in range(40)]
    assert pairs[0].expected == pytest.approx(rows * per_row**2 / columns)
    assert pairs[0].expected_jaccard == pytest.approx(48 / (2 * 384 - 48))
    assert np.mean([pair.both for pair in pairs]) == pytest.approx(pairs[0].expected, rel=0.1)
    assert np.mean([pair.jaccard for pair in pairs]) == pytest.approx(pairs[0].expected_jaccard, rel=0.1)


def test_a_vector_is_one_row() -> None:
    found = overlap(toy_model(), Selection({BIAS: indices(0, 1)}), Selection({BIAS: indices(2, 3, 4, 5)})).total
    assert found == Shared(2, 4, 0, 2 * 4 / 32)


# --- noise


@pytest.mark.parametrize("count", [2, 7])
def test_the_standard_error_is_that_of_statistics(count: int) -> None:
    gradients = np.random.default_rng(0).normal(0.3, 2.0, size=(count, 5, 4))
    found = standard_error(torch.tensor(gradients.sum(0)), torch.tensor((gradients**2).sum(0)), count)
    expected = np.sqrt(count) * gradients.std(axis=0, ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_standard_error_of_equal_gradients_is_zero() -> None:
    assert float(standard_error(torch.tensor(0.3), torch.tensor(0.03), 3)) == pytest.approx(0, abs=1e-4)


def test_noise_counts_entries_below_their_error() -> None:
    model = toy_model()
    sums = {name: torch.zeros_like(p) for name, p in model.net.named_parameters()}
    squares = {name: torch.zeros_like(p) for name, p in model.net.named_parameters()}
    # two gradients: 1 and 1 (error 0), 1 and -0.5 (sum 0.5, error 1.5), 3 and 1 (sum 4, error 2)
    sums[QKV].view(-1)[:3] = torch.tensor([2.0, 0.5, 4.0])
    squares[QKV].view(-1)[:3] = torch.tensor([2.0, 1.25, 10.0])
    found = noise(model, Scores(sums, 2, 0, "", squares), Selection({QKV: indices(0, 1, 2, 3)}))
    block = found.parts["block 0"]
    assert (block.chosen, block.chosen_noisy) == (4, 2) and block.chosen_share == 0.5
    assert block.entries - block.entries_noisy == 2
    assert math.isnan(found.parts["neck"].chosen_share) and found.parts["neck"].share == 1
    assert found.total.chosen_share == 0.5 and found.gradients == 2 and found.pure == pytest.approx(0.5)


def test_pure_noise_is_what_the_t_distribution_says() -> None:
    model = toy_model()
    found = noise(model, scores_of(model, gradients=5), Selection({}))
    assert found.pure == pytest.approx(0.6261, abs=1e-4)
    assert found.total.share == pytest.approx(found.pure, abs=0.01)
    assert math.isnan(found.total.chosen_share)


def test_chosen_entries_are_less_noisy_than_all() -> None:
    model = toy_model()
    scores = scores_of(model, gradients=5)
    found = noise(model, scores, select(model, scores, name="gps", per_neuron=1)).total
    assert found.chosen_share < found.share


def test_noise_needs_squares_and_two_gradients() -> None:
    model = toy_model()
    scores = scores_of(model, gradients=1)
    with pytest.raises(ConfigError, match=r"needs at least 2 gradients, and 1 was summed; use more scoring images"):
        noise(model, scores, Selection({}))
    with pytest.raises(ConfigError, match=r"needs scores with squared gradients; score with squares=True"):
        noise(model, Scores(scores.sums, 3, 0, ""), Selection({}))


# --- stability


@pytest.mark.parametrize("count", [2, 7])
def test_halves_are_disjoint_complete_and_in_order(count: int) -> None:
    batches = [toy_batch(seed=seed) for seed in range(count)]
    first, second = split_halves(batches, seed=3)
    assert (len(first), len(second)) == (count // 2, count - count // 2)
    for half in (first, second):
        names = [batch.names for batch in half]
        assert names == sorted(names) == [batch.names for batch in half]  # twice
    assert sorted(batch.names for half in (first, second) for batch in half) == [batch.names for batch in batches]


def test_halves_depend_on_the_seed() -> None:
    batches = list(range(20))
    halves = [split_halves(batches, seed=seed)[0].numbers for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_one_batch_has_no_halves() -> None:
    with pytest.raises(DataError, match=r"1 scoring batch can't be split into halves; use more scoring images"):
        split_halves([toy_batch()], seed=0)


def test_stability_between_seeds_and_halves() -> None:
    model, batches = toy_model(), [toy_batch(seed=seed) for seed in range(4)]

    def choose(scores: Scores) -> Selection:
        return select(model, scores, name="gps", per_neuron=1)

    def scored(images: Any, seed: int) -> Scores:
        return score(model, images, ContrastiveLoss(cells=4, seed=seed, temperature=0.1))

    found = stability(model, batches, scored=scored, choose=choose, seeds=(0, 1), first=scored(batches, 0))
    assert [label for label, _ in found.seeds] == ["seeds 0 and 1"]
    assert [label for label, _ in found.halves] == ["halves by seed 0", "halves by seed 1"]
    for _, pair in (*found.seeds, *found.halves):
        assert pair.total.expected_jaccard < pair.total.jaccard < 1


def test_the_same_loss_selects_the_same() -> None:
    model = toy_model()
    seen: list[tuple[int, str, bool]] = []

    def choose(scores: Scores) -> Selection:
        seen.append((scores.batches, scores.per, scores.squares is None))
        return Selection({QKV: scores.sums[QKV].abs().argmax(dim=1) + 32 * torch.arange(96)})

    def scored(images: Any, seed: int) -> Scores:
        return score(model, images, ContrastiveLoss(cells=4, seed=0, temperature=0.1), per="sample", squares=True)

    batches = [toy_batch(seed=seed) for seed in range(2)]
    found = stability(model, batches, scored=scored, choose=choose, seeds=(0, 5), first=scored(batches, 0))
    assert found.seeds[0][1].total.jaccard == 1
    assert seen == [(4, "sample", False)] * 2 + [(2, "sample", False)] * 4
