"""A depthwise convolution with tuned entries: its backward pass computes the chosen taps of the kernels only.

The gradient of one tap per channel is a sum of products of the incoming gradient with the inputs under that tap, and a
depthwise convolution by kernels that are 1 there, else 0, is what brings those inputs to their places. On CPUs that is
many times faster than the gradient of whole 5 x 5 kernels, for which oneDNN has no fast code (docs/performance.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtune.tuning.product import as_autocast, once_differentiable

Over = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Stride, padding and dilation, each (vertical, horizontal) in pixels."""

_WORTH_IT = 1 / 4  # share of a kernel's taps up to which one convolution each is faster than the whole gradient
_FAST_WHOLE = 9  # taps; up to 3 x 3, oneDNN has fast code for the whole gradient


class TapPlan(NamedTuple):
    """Which tap of each channel is chosen, in as many rounds as the channel with the most has.

    Attributes:
        taps: (rounds, channels) int64, the tap of the flattened kernel; any where a channel has no more.
        places: (n,) int64, where each chosen entry lies in the flattened `taps`.
    """

    taps: Tensor
    places: Tensor


def is_depthwise(module: nn.Module) -> bool:
    """Tells whether a module is a plain convolution of each channel by itself, maybe one that pads as TensorFlow."""
    if not isinstance(module, nn.Conv2d) or not module.in_channels == module.out_channels == module.groups > 1:
        return False
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    return type(module) is nn.Conv2d or _pads_as_tensorflow(module)


def plan_taps(indices: Tensor, channels: int, taps: int) -> TapPlan | None:
    """Returns the plan for chosen entries, or None where the whole gradient is as fast.

    Args:
        indices: (n,) sorted unique int64 into the flattened (channels, 1, h, w) weight.
        taps: h * w.
    """
    channel, tap = indices // taps, indices % taps
    counts = torch.bincount(channel, minlength=channels)
    rounds = int(counts.max()) if len(indices) else 0
    if taps <= _FAST_WHOLE or not 0 < rounds <= _WORTH_IT * taps:
        return None
    nth = torch.arange(len(indices), device=indices.device) - (counts.cumsum(0) - counts)[channel]
    places = nth * channels + channel
    chosen = indices.new_zeros(rounds * channels)
    chosen[places] = tap
    return TapPlan(chosen.view(rounds, channels), places)


def convolve(
    module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, plan: TapPlan
) -> Tensor:
    """Maps (..., channels, h, w) as the stock layer does, in autocast's dtype where that is on.

    Args:
        weight: (channels, 1, h, w), with the current values in it.
        bias: (channels,), or None.
        values: (n,), which get the gradient.
    """
    x = as_autocast(x)
    if _pads_as_tensorflow(module):
        from timm.layers.padding import pad_same

        x = pad_same(x, list(weight.shape[-2:]), list(module.stride), list(module.dilation))
    over = (module.stride, module.padding, module.dilation)
    return SelectedTaps.apply(over, x, weight, bias, values, *plan)  # type: ignore[no-any-return]


class SelectedTaps(torch.autograd.Function):
    """A depthwise convolution in the dtype of x; of the gradient of its kernels only the chosen taps exist."""

    @staticmethod
    def forward(
        ctx: Any, over: Over, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, *plan: Tensor
    ) -> Tensor:
        """Maps (..., channels, h, w) to the same with other h and w.

        Args:
            weight: (channels, 1, kh, kw), of any float dtype.
            bias: (channels,), or None.
            values: (n,), which get the gradient.
            plan: a `TapPlan`.
        """
        ctx.save_for_backward(x, weight, *plan)
        ctx.over, ctx.values_dtype = over, values.dtype
        return _depthwise(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), over)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, bias and the (n,) values; `grad` is as the answer."""
        x, weight, taps, places = ctx.saved_tensors
        _, needs_x, _, needs_bias, needs_values, *_ = ctx.needs_input_grad
        grad_x = _input_gradient(grad, x, weight.to(x.dtype), ctx.over) if needs_x else None
        grad_bias = _channel_sums(grad) if needs_bias else None
        grad_values = None
        if needs_values:
            rounds = [_channel_sums(_under(tap, x, weight, ctx.over).mul_(grad)) for tap in taps]
            grad_values = torch.cat(rounds)[places].to(ctx.values_dtype)
        return None, grad_x, None, grad_bias, grad_values, None, None


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, over: Over) -> Tensor:
    stride, padding, dilation = over
    return F.conv2d(x, weight, bias, stride, padding, dilation, len(weight))


def _under(tap: Tensor, x: Tensor, weight: Tensor, over: Over) -> Tensor:
    """Returns the inputs that tap (channels,) of each channel's kernel meets, in the places of the outputs."""
    kernels = x.new_zeros(len(tap), weight[0].numel()).scatter_(1, tap[:, None], 1)
    return _depthwise(x, kernels.view_as(weight), None, over)


def _channel_sums(x: Tensor) -> Tensor:
    """Returns the (channels,) fp32 (or better) sums over all pixels of (..., channels, h, w)."""
    pixels = [dim for dim in range(x.dim()) if dim != x.dim() - 3]
    return x.sum(pixels, dtype=torch.promote_types(x.dtype, torch.float32))


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, over: Over) -> Tensor:
    """Returns the gradient of (..., channels, h, w); `torch.nn.grad` would not know the layout of x in memory."""
    batch, gradients = (t if t.dim() == 4 else t[None] for t in (x, grad))
    only_input = [True, False, False]
    backward = torch.ops.aten.convolution_backward
    result: Tensor = backward(gradients, batch, weight, None, *over, False, [0, 0], len(weight), only_input)[0]
    return result.view_as(x)


def _pads_as_tensorflow(module: nn.Module) -> bool:
    from timm.layers.conv2d_same import Conv2dSame

    return isinstance(module, Conv2dSame)
