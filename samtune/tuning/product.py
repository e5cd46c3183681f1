"""The product in a layer with tuned entries: the stock operation, whose backward pass computes the chosen only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

Backward = Callable[..., tuple[Tensor | None, ...]]


def as_autocast(x: Tensor) -> Tensor:
    """Returns x in autocast's dtype where that is on, as a stock layer takes it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def once_differentiable(backward: Backward) -> Backward:
    """Makes a backward pass refuse second derivatives, which would lack the part that goes through the weight.

    torch's own `once_differentiable` lets them pass where the incoming gradient is a constant.
    """

    @functools.wraps(backward)
    def without_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, grad)
        if not torch.is_grad_enabled():
            return gradients
        return tuple(None if g is None else _Refusal.apply(g.requires_grad_()) for g in gradients)

    return without_graph


class _Refusal(torch.autograd.Function):
    """The identity, with no derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Returns the gradient, of any shape, as it is."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Refuses."""
        raise RuntimeError(
            "a layer with tuned entries is once_differentiable: it has no second derivatives. "
            "Compute them on the merged model."
        )


@dataclass(frozen=True)
class Rounded:
    """A weight in 8 bits, made dense for each product and never kept: codes times the scale of their row.

    Attributes:
        codes: (outputs, inputs) int8, -127 to 127.
        scale: (outputs, 1) fp32.
        places, values: (n,) flat places of the codes that don't count, and what stands there; None for none.
    """

    codes: Tensor
    scale: Tensor
    places: Tensor | None = None
    values: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Rounds an (outputs, inputs) weight: the largest of a row becomes 127, and no entry moves by half a step."""
        scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)

    def to(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight in a float dtype: (outputs, inputs)."""
        dense = (self.codes * self.scale).to(dtype)
        if self.places is not None and self.values is not None:
            dense.view(-1)[self.places] = self.values.detach().to(dtype)
        return dense


class SelectedProduct(torch.autograd.Function):
    """y = x W^T + b in the dtype of x; of the gradient of W only the product that holds the chosen entries exists."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Rounded, bias: Tensor | None, values: Tensor | None, *plan: Tensor | None
    ) -> Tensor:
        """Maps x (..., inputs) to (..., outputs).

        Args:
            weight: (outputs, inputs), with the current values in it; of any float dtype, or in 8 bits.
            bias: (outputs,), or None.
            values: (n,), which get the gradient; None for none.
            plan: R of the outputs and U of the inputs, None for all, and (n,) where each value lies in the flattened
                product of the backward pass, which holds the chosen entries of the weight's gradient.
        """
        rows, columns, places = plan
        kept = x.reshape(-1, x.shape[-1])  # (T, inputs)
        ctx.bias_in_product = ctx.needs_input_grad[2] and rows is None and columns is not None
        if columns is not None:  # (U, T), with a row of ones below
            x_rows, kept = kept.T, kept.new_empty(len(columns) + ctx.bias_in_product, len(kept))
            torch.index_select(x_rows, 0, columns, out=kept[: len(columns)])
            kept[len(columns) :] = 1
        # the weight as it is stored, to be rounded again: rounded copies would hold 160 MiB of a ViT-B for 2 % of time
        needs_x, _, _, needs_values, *_ = ctx.needs_input_grad
        ctx.rounded, dense = (weight, None) if isinstance(weight, Rounded) else (None, weight)
        ctx.save_for_backward(kept if needs_values else None, dense if needs_x else None, rows, columns, places)
        ctx.values_dtype = None if values is None else values.dtype
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x (..., inputs), bias (outputs,) and values (n,); `grad` is (..., outputs)."""
        kept, dense, rows, columns, places = ctx.saved_tensors
        weight = dense if ctx.rounded is None else ctx.rounded
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = grad_values = None
        if ctx.needs_input_grad[0]:
            # one product: batched ones copy the weight per item
            grad_x = (flat @ weight.to(flat.dtype)).reshape(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            # a contiguous left side is up to 2.3 x faster than a transposed view; one sum of products per entry was no
            # faster in bf16 for 10 to 3000 scattered entries of a (3072, 768) weight
            if columns is None:
                product = (flat.T if rows is None else flat.T.index_select(0, rows)) @ kept  # (R, inputs)
            else:
                product = kept @ (flat if rows is None else flat.index_select(1, rows))  # (U, R), maybe a row of sums
            grad_values = product.flatten()[places].to(ctx.values_dtype)
            grad_bias = product[-1] if ctx.bias_in_product else None
        if ctx.needs_input_grad[2] and grad_bias is None:
            grad_bias = flat.sum(0)
        return grad_x, None, grad_bias, grad_values, None, None, None
