"""A 1 x 1 convolution with tuned entries: its backward pass computes the rows and columns that hold a chosen one.

Both gradients are convolutions again. On CPUs oneDNN's are up to twice as fast as products of matrices by MKL, which
is slow on other makers' processors (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samtune.models.lines import as_lines, from_lines
from samtune.tuning.product import once_differentiable


class SelectedPointwise(torch.autograd.Function):
    """A 1 x 1 convolution in the dtype of x; of the gradient of its weight only the chosen rows and columns exist."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, *plan: Tensor | None
    ) -> Tensor:
        """Maps (B, inputs, h, w) to (B, outputs, h, w).

        Args:
            weight: (outputs, inputs, 1, 1), of any float dtype.
            bias: (outputs,), or None.
            values: (n,), which get the gradient.
            plan: R of the outputs and U of the inputs, None for all, and (n,) where each value lies in the flattened
                (R, U) part of the weight's gradient.
        """
        rows, columns, places = plan
        needs_x, _, _, needs_values, *_ = ctx.needs_input_grad
        chosen = x if columns is None else _channels(x, columns)
        ctx.save_for_backward(chosen if needs_values else None, weight if needs_x else None, rows, places)
        ctx.values_dtype = values.dtype
        return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, bias (outputs,) and values (n,); `grad` is (B, outputs, h, w)."""
        kept, weight, rows, places = ctx.saved_tensors
        grad_x = grad_bias = grad_values = None
        lines = as_lines(grad)
        if weight is not None:
            grad_x = from_lines(F.conv2d(lines, weight.to(grad.dtype).transpose(0, 1)), len(grad))
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
        if kept is not None:
            product = _weight_gradient(as_lines(kept), lines if rows is None else _channels(lines, rows))
            grad_values = product.flatten()[places].to(ctx.values_dtype)
        return grad_x, None, grad_bias, grad_values, None, None, None


def _channels(x: Tensor, chosen: Tensor) -> Tensor:
    """Returns the chosen channels of (B, C, h, w), with channels last in memory."""
    return x.movedim(1, -1).index_select(-1, chosen).movedim(-1, 1)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Returns the (outputs, inputs, 1, 1) gradient of the weight."""
    weight = x.new_empty(grad.shape[1], x.shape[1], 1, 1)
    if not weight.numel():
        return weight
    over = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    gradient: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *over, [False, True, False])[1]
    return gradient
