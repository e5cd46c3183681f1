"""The memory-saving attention equals segment-anything's, forward and backward."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor, nn

from samtune.models.sam.attention import FusedAttention

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp64"])
DIM, HEADS = 24, 3  # head size 8


def randomised(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Gives every parameter noise: relative positions start at zero, which would hide them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


def assert_same(stock: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Compares outputs, and the gradients of the input and of every parameter."""
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [module(of) for module, of in zip((stock, fused), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], **TOLERANCE[x.dtype])
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **TOLERANCE[x.dtype])
    ours = dict(fused.named_parameters())
    assert set(ours) == {name for name, _ in stock.named_parameters()}
    for name, parameter in stock.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
        scale = max(1.0, float(parameter.grad.abs().max()))  # sums over all tokens: rounding grows with them
        torch.testing.assert_close(ours[name].grad / scale, parameter.grad / scale, **TOLERANCE[x.dtype], msg=name)


@DTYPES
@pytest.mark.parametrize("grid", [(5, 5), (4, 7)], ids=["square", "oblong"])
def test_equals_stock_attention(grid: tuple[int, int], dtype: torch.dtype) -> None:
    stock = randomised(Attention(DIM, HEADS, use_rel_pos=True, input_size=grid), dtype)
    assert_same(stock, FusedAttention(deepcopy(stock)), torch.randn(2, *grid, DIM, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("grid", [(3, 3), (8, 6)], ids=["smaller", "larger"])
def test_resamples_relative_positions_as_stock(grid: tuple[int, int], dtype: torch.dtype) -> None:
    stock = randomised(Attention(DIM, HEADS, use_rel_pos=True, input_size=(5, 5)), dtype)
    assert_same(stock, FusedAttention(deepcopy(stock)), torch.randn(2, *grid, DIM, dtype=dtype))


@DTYPES
def test_equals_stock_without_relative_positions(dtype: torch.dtype) -> None:
    stock = randomised(Attention(DIM, HEADS), dtype)
    assert_same(stock, FusedAttention(deepcopy(stock)), torch.randn(2, 4, 4, DIM, dtype=dtype))


@DTYPES
@pytest.mark.parametrize(
    ("window", "grid"), [(4, (8, 8)), (3, (8, 5)), (0, (6, 6))], ids=["windows", "padded windows", "global"]
)
def test_equals_stock_inside_its_block(window: int, grid: tuple[int, int], dtype: torch.dtype) -> None:
    stock = randomised(Block(DIM, HEADS, use_rel_pos=True, window_size=window, input_size=grid), dtype)
    ours = deepcopy(stock)
    ours.attn = FusedAttention(ours.attn)
    assert_same(stock, ours, torch.randn(2, *grid, DIM, dtype=dtype))


def test_equals_stock_at_the_real_head_and_window_size() -> None:
    stock = randomised(Attention(128, 2, use_rel_pos=True, input_size=(14, 14)), torch.float64)
    assert_same(stock, FusedAttention(deepcopy(stock)), torch.randn(1, 14, 14, 128, dtype=torch.float64) / 4)


def test_takes_over_the_parameters_under_their_names() -> None:
    stock = Attention(DIM, HEADS, use_rel_pos=True, input_size=(4, 4))
    fused = FusedAttention(stock)
    names = dict(stock.named_parameters())
    assert dict(fused.named_parameters()).keys() == names.keys()
    assert all(parameter is names[name] for name, parameter in fused.named_parameters())


def test_makes_no_table_of_all_pairs() -> None:
    """The largest tensor of the forward and backward pass stays linear in the number of cells."""
    grid, largest = (24, 24), 0
    fused = FusedAttention(Attention(DIM, HEADS, use_rel_pos=True, input_size=grid))

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fused(torch.randn(1, *grid, DIM)).sum().backward()
    cells = grid[0] * grid[1]
    assert 0 < largest <= HEADS * cells * (DIM // HEADS + sum(grid) + 8) < HEADS * cells**2
