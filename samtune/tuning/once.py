"""A backward pass without second derivatives, which says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def once_differentiable(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
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
