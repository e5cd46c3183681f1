"""A convolution and the frozen norm behind it as one: the numbers of the two, wherever somebody may look or train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import toy_lite

from samtune.models.lines import as_lines, from_lines
from samtune.models.sam import folding
from samtune.models.sam.lite import LiteSam
from samtune.selection import select
from samtune.selection.selection import Selection
from samtune.tuning import attach
from samtune.tuning.precision import lower_base

EXACT = {"rtol": 1e-9, "atol": 1e-9}
METHODS: dict[str, dict[str, Any]] = {
    "full": {}, "bias": {}, "gps": {"criterion": "random"}, "lora": {"rank": 2}, "ssf": {},
}  # fmt: skip
NORM = "image_encoder.trunk.blocks.1.0.bn1"
CONV = "image_encoder.trunk.blocks.1.0.conv_pw"


def lite() -> LiteSam:
    """A small light SAM in float64 whose norms do something."""
    return toy_lite(dtype=torch.float64).train()


def encoded(model: LiteSam, *sizes: int) -> Tensor:
    """Returns the embeddings of noise of (B, h, w)."""
    batch, *frame = sizes or (2, 64, 64)
    pixels = torch.randn(batch, 3, *frame, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return model.encode(pixels.to(model.pixel_mean.dtype))


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs convolutions and norms one after the other from here on."""
    monkeypatch.setattr(folding, "_folds", lambda *_: False)


@pytest.mark.parametrize("method", list(METHODS))
def test_answers_and_gradients_are_those_of_the_two_layers(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for _ in range(2):
        model = lite()
        trained = attach(model, select(model, None, name=method, **METHODS[method]))
        answer = encoded(model)
        answer.sin().sum().backward()
        found.append((answer, {n: p.grad for n, p in trained.items() if p.grad is not None}))
        apart(monkeypatch)
    torch.testing.assert_close(found[0], found[1], **EXACT)
    assert found[0][1]


@pytest.mark.parametrize("sizes", [(1, 32, 32), (3, 96, 32)], ids=["one pixel a line", "lines of 1 to 16 pixels"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_any_frame_and_recomputed_blocks(
    sizes: tuple[int, ...], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Tensor | None]] = []
    for _ in range(2):
        model = lite()
        trained = attach(model, select(model, None, name="gps", criterion="random"))
        model.checkpointing = checkpointing
        answer = encoded(model, *sizes)
        answer.sin().sum().backward()
        found.append([answer, *(p.grad for p in trained.values())])
        apart(monkeypatch)
    torch.testing.assert_close(found[0], found[1], **EXACT)


@pytest.mark.parametrize("base", [None, torch.bfloat16], ids=["fp32 base", "bf16 base"])
@pytest.mark.parametrize("method", ["full", "bias", "gps"])
def test_bf16_answers_are_as_near_as_those_of_two_layers(
    method: str, base: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, errors = encoded(toy_lite()).detach(), list[Tensor]()
    for _ in range(2):
        model = toy_lite().train()
        attach(model, select(model, None, name=method, **METHODS[method]))
        if base is not None:
            lower_base(model, base)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((encoded(model).detach() - exact).norm())
        apart(monkeypatch)
    assert 0 < errors[0] < 1.3 * errors[1] < 0.02 * exact.norm()


def test_the_scale_of_a_norm_behind_chosen_entries_gets_its_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for _ in range(2):
        model = lite()
        trained = attach(model, Selection({f"{CONV}.weight": torch.arange(3)}, (f"{NORM}.weight",)))
        encoded(model).sin().sum().backward()
        grads.append(trained[f"{NORM}.weight"].grad)
        apart(monkeypatch)
    torch.testing.assert_close(grads[0], grads[1], **EXACT)


@pytest.mark.parametrize("name", [CONV, NORM])
def test_who_hooks_a_layer_sees_its_own_answer(name: str) -> None:
    model, seen = lite(), list[Tensor]()
    wanted = encoded(model)
    layer = model.net.get_submodule(name)
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    torch.testing.assert_close(encoded(model), wanted, **EXACT)
    ((x, y),) = seen
    torch.testing.assert_close(y, layer(x), **EXACT)


def test_a_layer_of_another_library_stays_what_it_is() -> None:
    model = lite()
    wanted = encoded(model)
    model.net.set_submodule(CONV, nn.Sequential(model.net.get_submodule(CONV)))  # as peft wraps layers
    torch.testing.assert_close(encoded(model), wanted, **EXACT)


def test_a_norm_that_measures_its_batch_does_so() -> None:
    model = lite()
    norm = model.net.get_submodule(NORM)
    before = norm.running_mean.clone()
    norm.training = True
    encoded(model)
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(
    ("trains", "mode", "norms"), [(True, True, "stem"), (True, False, "all"), (False, True, "all")]
)
def test_norms_are_computed_where_nothing_trains(
    trains: bool, mode: bool, norms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the one of the stem, which stands before the blocks, is always."""
    calls, stock = [], torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda *a, **k: (calls.append(1), stock(*a, **k))[1])
    model = lite().requires_grad_(trains).train(mode)
    encoded(model)
    assert len(calls) == (1 if norms == "stem" else sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()))


def test_lines_are_the_same_memory_and_come_back() -> None:
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    lines = as_lines(x)
    assert lines.shape == (6, 5, 1, 4) and lines.data_ptr() == x.data_ptr()
    assert torch.equal(lines[4, :, 0], x[1, :, 1])
    back = from_lines(lines, 2)
    assert torch.equal(back, x) and back.data_ptr() == x.data_ptr()
