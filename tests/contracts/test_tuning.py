"""What holds for every selection, whoever made it: attach, train, save, merge, undo."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from cases import CASES, SCATTERED, make_selection
from descriptions import mask_description
from torch import Tensor, nn
from toy import ENTRY, prompts_of, toy_batch, toy_model

from samtune.base.tensors import read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.audit import audit
from samtune.files.delta import apply_delta, save_delta, undo_delta
from samtune.models.sam.model import SamModel
from samtune.models.table import MODELS
from samtune.models.weights import read_state
from samtune.selection import Selection, check_selection, load_selection, save_selection
from samtune.tuning import attach, count, count_by_block, merge
from samtune.tuning.compact import CompactLinear, CompactModule

BATCHES = [toy_batch(seed=seed, prompts=prompts_of(kind)) for seed, kind in enumerate(("none", "box", "point"))]


def loss_of(model: SamModel, batch: int = 0) -> Tensor:
    """A loss in the model's own precision that every output pixel takes part in."""
    logits = model(BATCHES[batch % len(BATCHES)])
    target = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return (logits - target).square().mean()


def logits_of(model: SamModel) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch) for batch in BATCHES]


def train(model: SamModel, trained: Mapping[str, nn.Parameter], *, steps: int, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def masks_of(selection: Selection, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns for each tensor of a state which entries may change."""
    masks = {name: torch.full(tensor.shape, name in selection.whole) for name, tensor in state.items()}
    for name, indices in selection.entries.items():
        masks[name].view(-1)[indices] = True
    return masks


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def copied(model: SamModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


@pytest.fixture
def tuned(selection: Selection) -> SamModel:
    """An attached model after three steps."""
    model = toy_model()
    train(model, attach(model, selection), steps=3)
    return model


# --- selections


def test_selection_fits_repeats_and_survives_its_file(case: str, selection: Selection, tmp_path: Path) -> None:
    model = toy_model()
    check_selection(selection, model)
    again = make_selection(case, toy_model())
    shapes = {name: tuple(model.net.get_parameter(name).shape) for name in selection.entries}
    save_selection(selection, tmp_path / "s.safetensors", shapes)
    for other in (again, load_selection(tmp_path / "s.safetensors")):
        assert other.whole == selection.whole and other.entries.keys() == selection.entries.keys()
        assert all(torch.equal(other.entries[name], selection.entries[name]) for name in selection.entries)
    for indices in selection.entries.values():
        assert bool((indices.diff() > 0).all())  # sorted, unique


def test_making_a_selection_changes_no_model(case: str) -> None:
    model = toy_model()
    make_selection(case, model)
    assert same(model.net.state_dict(), toy_model().net.state_dict())


# --- attach


def test_attached_model_is_the_plain_model_at_the_start(selection: Selection) -> None:
    plain, model = toy_model(), toy_model()
    attach(model, selection)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), logits_of(plain), strict=True))
    assert same(model.net.state_dict(), plain.net.state_dict())


def test_only_what_is_selected_gets_a_gradient_and_the_right_one(selection: Selection) -> None:
    plain, model = toy_model(), toy_model()
    trained = attach(model, selection)
    assert sorted(trained) == selection.names()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    loss_of(plain).backward()
    loss_of(model).backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for name, parameter in trained.items():
        dense = plain.net.get_parameter(name).grad
        if dense is None:  # of the decoder, what mask 0 does not need
            assert parameter.grad is None
            continue
        expected = dense.flatten()[selection.entries[name]] if name in selection.entries else dense
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_no_dense_gradient_outlives_its_layer(selection: Selection) -> None:
    model = toy_model()
    attach(model, selection)
    loss_of(model).backward()
    kept = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    assert kept <= count(model, selection).total


def test_counts_are_what_trains_and_bound_what_changes(selection: Selection) -> None:
    model, base = toy_model(), toy_model().net.state_dict()
    before = count(model, selection)
    trained = attach(model, selection)
    assert before == count(model, selection)
    assert before.total == sum(p.numel() for p in trained.values())
    assert before.total == sum(amount for _, _, amount in count_by_block(model, selection))
    assert before.percent == pytest.approx(100 * before.total / sum(p.numel() for p in toy_model().parameters()))
    train(model, trained, steps=2)
    changed = sum(int((tensor != base[name]).sum()) for name, tensor in model.net.state_dict().items())
    assert 0 < changed <= before.total


def test_unselected_entries_stay_bit_equal_under_weight_decay(selection: Selection) -> None:
    model, base = toy_model(), toy_model().net.state_dict()
    train(model, attach(model, selection), steps=50)
    state, masks = model.net.state_dict(), masks_of(selection, base)
    for name, mask in masks.items():
        assert torch.equal(state[name][~mask], base[name][~mask]), name
    moved = sum(int((state[name] != base[name])[mask].sum()) for name, mask in masks.items())
    assert moved > 0.5 * sum(int(mask.sum()) for mask in masks.values())
    assert audit(base, state, selection).ok


@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=["default", "foreach", "loop", "fused"]
)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_steps_of_any_optimizer_reach_the_next_forward_pass(
    optimizer: type[torch.optim.Optimizer], options: dict[str, bool]
) -> None:
    model = toy_model()
    trained = attach(model, make_selection("gps-encoder", model))
    before = logits_of(model)
    loss_of(model).backward()
    optimizer(trained.values(), lr=1e-2, **options).step()
    assert not any(torch.equal(a, b) for a, b in zip(before, logits_of(model), strict=True))
    for name, indices in make_selection("gps-encoder", toy_model()).entries.items():
        assert torch.equal(model.net.state_dict()[name].flatten()[indices], trained[name].detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["AdamW fp64", "SGD fp32"])
def test_trajectory_equals_a_dense_masked_reference(selection: Selection, dtype: torch.dtype) -> None:
    """Reference: dense gradients times the mask; what the optimizer's decay moves outside of it is put back."""
    model, dense = toy_model(dtype=dtype), toy_model(dtype=dtype)
    base, masks = copied(dense), masks_of(selection, dense.net.state_dict())
    compact = attach(model, selection).values()
    reference = [p for n, p in dense.net.named_parameters() if n in selection.names()]
    if dtype == torch.float64:
        optimizers = [torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1) for p in (compact, reference)]
    else:  # under Adam, rounding becomes steps where the true gradient is zero (biases of keys)
        optimizers = [torch.optim.SGD(p, lr=1e-2, momentum=0.9) for p in (compact, reference)]
    for step in range(8):
        for which, optimizer in zip((model, dense), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(which, step).backward()
            for name, parameter in dense.net.named_parameters():
                if parameter.grad is not None:
                    parameter.grad *= masks[name]
            optimizer.step()
        with torch.no_grad():
            for name, parameter in dense.net.named_parameters():
                parameter.copy_(torch.where(masks[name], parameter, base[name]))
    state, expected = model.net.state_dict(), dense.net.state_dict()
    assert any(not torch.equal(expected[name], base[name]) for name in expected)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    for name in expected:
        assert float((state[name] - expected[name]).abs().max()) <= tolerance, name


def test_linear_and_convolution_layers_are_compact() -> None:
    for case in ("gps", SCATTERED):
        model = toy_model()
        selection = make_selection(case, model)
        attach(model, selection)
        compact = [module for module in model.modules() if isinstance(module, CompactModule)]
        assert len(compact) == len(selection.entries)
        assert any(isinstance(module, CompactLinear) for module in compact)
        assert any(isinstance(module, nn.Conv2d) for module in compact)
        assert isinstance(model.net.image_encoder.blocks[0].attn.qkv, nn.Linear)
    assert type(model.net.image_encoder).__name__ == "CompactImageEncoderViT"  # its position table, of "scattered"


def test_second_derivatives_are_refused_not_wrong() -> None:
    for name in ("image_encoder.blocks.1.mlp.lin1.weight", "image_encoder.neck.2.weight"):
        model = toy_model()
        values = attach(model, Selection({name: torch.arange(40)}))[name]
        (gradient,) = torch.autograd.grad(loss_of(model), values, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()


# --- state dicts and copies


def test_state_dict_has_the_stock_keys_and_the_current_values(selection: Selection) -> None:
    model, stock = toy_model(), toy_model().net.state_dict()
    trained = attach(model, selection)
    train(model, trained, steps=2)
    state = model.net.state_dict()  # without a forward pass after the last step
    assert list(state) == list(stock)
    assert all(state[name].shape == stock[name].shape and state[name].dtype == stock[name].dtype for name in stock)
    for name, parameter in trained.items():
        current = state[name].flatten()[selection.entries[name]] if name in selection.entries else state[name]
        assert torch.equal(current, parameter.detach())
    plain = toy_model(seed=1)
    plain.net.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(plain), logits_of(model), strict=True))


def test_load_state_dict_into_an_attached_model_takes_effect(selection: Selection, tuned: SamModel) -> None:
    other = toy_model(seed=5)
    result = tuned.net.load_state_dict(other.net.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert same(tuned.net.state_dict(), other.net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(logits_of(tuned), logits_of(other), strict=True))
    assert same(merge(tuned).net.state_dict(), other.net.state_dict())


def test_load_state_dict_stays_strict(selection: Selection, tuned: SamModel) -> None:
    name = selection.names()[0]
    incomplete = {key: tensor for key, tensor in toy_model().net.state_dict().items() if key != name}
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"\. $'):
        tuned.net.load_state_dict(incomplete)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "extra"'):
        tuned.net.load_state_dict({**toy_model().net.state_dict(), "extra": torch.zeros(1)})


def test_deepcopy_is_independent(selection: Selection, tuned: SamModel) -> None:
    before = copied(tuned)
    twin = deepcopy(tuned)
    assert same(twin.net.state_dict(), before)
    train(twin, {n: p for n, p in twin.net.named_parameters() if p.requires_grad}, steps=2)
    assert same(tuned.net.state_dict(), before) and not same(twin.net.state_dict(), before)
    after = copied(twin)
    train(tuned, {n: p for n, p in tuned.net.named_parameters() if p.requires_grad}, steps=2)
    assert same(twin.net.state_dict(), after)
    assert same(tuned.net.state_dict(), after)  # same batches, fresh optimizers: the same steps


@pytest.mark.parametrize("changes", [1, 2, 3, 4, 5, 6])
def test_every_change_of_a_copy_is_seen(changes: int) -> None:
    """A copy's tensors count their versions from zero: the number must not meet the original's."""
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    model = toy_model()
    train(model, attach(model, Selection({name: torch.arange(40)})), steps=2)
    logits_of(model)
    twin = deepcopy(model)
    values = dict(twin.net.named_parameters())[f"{name}_values"]
    with torch.no_grad():
        for _ in range(changes):
            values.add_(1)
    assert torch.equal(twin.net.state_dict()[name].flatten()[:40], values.detach())


# --- checkpointing and precision


def test_block_checkpointing_changes_no_gradient(selection: Selection) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = toy_model()
        model.checkpointing = checkpointing
        trained = attach(model, selection)
        train(model, trained, steps=1)  # so that values differ from the base
        model.zero_grad()
        loss_of(model).backward()
        gradients.append({name: p.grad for name, p in trained.items() if p.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_bf16_autocast_computes_what_the_plain_model_does(selection: Selection, tuned: SamModel) -> None:
    plain = toy_model()
    plain.net.load_state_dict(tuned.net.state_dict())
    trained = {name: p for name, p in tuned.net.named_parameters() if p.requires_grad}
    tuned.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = tuned(BATCHES[0]), plain(BATCHES[0])
    assert torch.equal(logits, expected)
    logits.float().square().mean().backward()
    expected.float().square().mean().backward()
    for name, parameter in trained.items():
        stock = name.removesuffix("_values")
        dense = plain.net.get_parameter(stock).grad
        if parameter.grad is None:
            assert dense is None
            continue
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        entries = selection.entries.get(stock)
        wanted = dense if entries is None else dense.flatten()[entries]
        difference, scale = (parameter.grad - wanted).norm(), dense.norm()
        assert float(difference) <= 0.05 * float(scale) + 1e-6, name


def test_gradients_accumulate_over_batches(selection: Selection) -> None:
    model = toy_model()
    trained = attach(model, selection)
    (loss_of(model, 0) + loss_of(model, 1)).backward()
    together = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    model.zero_grad()
    loss_of(model, 0).backward()
    loss_of(model, 1).backward()
    for name, gradient in together.items():
        torch.testing.assert_close(trained[name].grad, gradient, rtol=1e-4, atol=1e-6)


# --- merge, delta, undo


def test_merged_model_is_plain_and_answers_bit_for_bit_as_the_tuned_one(tuned: SamModel) -> None:
    answers, state = logits_of(tuned), copied(tuned)
    merged = merge(tuned)
    assert same(merged.net.state_dict(), state)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(merged), answers, strict=True))
    plain = toy_model()
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    assert [n for n, _ in merged.net.named_parameters()] == [n for n, _ in plain.net.named_parameters()]
    assert [n for n, _ in merged.net.named_buffers()] == [n for n, _ in plain.net.named_buffers()]
    assert [vars(m).keys() for m in merged.modules()] == [vars(m).keys() for m in plain.modules()]
    assert not any(p.requires_grad for p in merged.parameters())
    plain.net.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(plain), answers, strict=True))


def test_merging_twice_changes_nothing_and_tuning_can_go_on(selection: Selection, tuned: SamModel) -> None:
    current = deepcopy(tuned).net.state_dict()  # of a copy: asking the model itself would write its values
    state = copied(merge(tuned))
    assert same(state, current)
    assert same(merge(tuned).net.state_dict(), state)
    assert same(merge(toy_model()).net.state_dict(), toy_model().net.state_dict())
    train(tuned, attach(tuned, selection), steps=1)
    assert not same(tuned.net.state_dict(), state)


def test_delta_applies_and_undoes_exactly(selection: Selection, tuned: SamModel, tmp_path: Path) -> None:
    base, merged = copied(toy_model()), copied(merge(tuned))
    files = {name: tmp_path / f"{name}.safetensors" for name in ("base", "merged", "delta", "applied", "undone")}
    save_tensors(files["base"], base, {})
    about = mask_description("toy", base_hash=state_hash(base)).to_metadata()
    save_tensors(files["merged"], merged, about)
    save_delta(files["delta"], base=base, merged=merged, selection=selection, metadata=about)
    apply_delta(files["base"], files["delta"], files["applied"])
    undo_delta(files["merged"], files["delta"], files["undone"])
    assert same_tensors(read_state(files["applied"]), merged)
    assert same_tensors(read_state(files["undone"]), base)
    assert read_metadata(files["applied"]) == about


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return same(dict(sorted(first.items())), dict(sorted(second.items())))


def test_delta_of_another_base_or_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    model = toy_model()
    selection, base, out = make_selection("gps", model), copied(model), tmp_path / "out.safetensors"
    train(model, attach(model, selection), steps=1)
    states = {"base": base, "merged": model.net.state_dict()}
    about = mask_description("toy", base_hash=state_hash(base)).to_metadata()
    save_delta(tmp_path / "d.safetensors", **states, selection=selection, metadata=about)
    save_tensors(tmp_path / "other.safetensors", toy_model(seed=3).net.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"belongs to another base than .*other"):
        apply_delta(tmp_path / "other.safetensors", tmp_path / "d.safetensors", out)
    with pytest.raises(CheckpointError, match=r"belongs to another merged model than .*other"):
        undo_delta(tmp_path / "other.safetensors", tmp_path / "d.safetensors", out)
    with pytest.raises(CheckpointError, match="is no delta file"):
        apply_delta(tmp_path / "other.safetensors", tmp_path / "other.safetensors", out)
    assert not out.exists()


def test_audit_notices_one_entry_that_moved(selection: Selection, tuned: SamModel) -> None:
    base, merged = toy_model().net.state_dict(), copied(merge(tuned))
    assert audit(base, merged, selection).ok
    masks = masks_of(selection, base)
    stray = next(name for name, mask in masks.items() if not bool(mask.all()))
    merged[stray].view(-1)[int((~masks[stray]).flatten().nonzero()[0])] += 1e-3
    report = audit(base, merged, selection)
    assert not report.ok
    assert any(line == f"{stray}: 1 entries changed outside of the selection" for line in report.lines)


def test_selection_of_another_model_is_refused() -> None:
    model = toy_model()
    with pytest.raises(CheckpointError, match="points outside of"):
        attach(model, Selection({"image_encoder.neck.0.weight": torch.tensor([10_000])}))
    assert not any(isinstance(module, CompactModule) for module in model.modules())


@pytest.mark.parametrize("case", [case for case in CASES if make_selection(case, toy_model()).entries])
def test_attaching_entries_twice_is_refused(case: str) -> None:
    model = toy_model()
    selection = make_selection(case, model)
    attach(model, selection)
    with pytest.raises(CheckpointError, match="merge it first"):
        attach(model, selection)
    assert attach(merge(model), selection).keys() == {*selection.names()}


def test_whole_tensors_are_plain_parameters_that_can_be_attached_again() -> None:
    model = toy_model()
    selection = make_selection("full", model)
    first, again = attach(model, selection), attach(model, selection)
    assert first.keys() == again.keys() == {*selection.names()}
    assert all(first[name] is again[name] for name in first)


def test_entries_in_two_tensors_of_one_module_are_refused() -> None:
    owner = "image_encoder.blocks.0.mlp.lin1"
    selection = Selection({f"{owner}.{name}": torch.tensor([0]) for name in ("weight", "bias")})
    with pytest.raises(CheckpointError, match=f"two tensors of {owner}"):
        attach(toy_model(), selection)


def test_selectors_that_add_nothing_are_cases() -> None:
    assert {"gps", "grft", "full", "linear", "bias", "partial", SCATTERED} <= set(CASES)
