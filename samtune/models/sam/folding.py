"""A frozen batch norm is a scale and a shift: with the convolution before it, one convolution.

Done anew in each forward pass of a training, from the tensors as they are: names, files and gradients are those of the
two layers. That spares one pass over every map forward, and one backward.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn

from samtune.models.backbone import is_pointwise
from samtune.models.lines import as_lines, from_lines

Scaled = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What a convolution that computes its gradient by itself has as `scaled`, see `CompactModule`."""


def fold_blocks(trunk: nn.Module) -> None:
    """Makes the blocks of an EfficientNet-Lite run their convolutions and norms as one, in place."""
    for module in trunk.modules():
        if type(module) is DepthwiseSeparableConv:
            module.__class__ = _Separable
        elif type(module) is InvertedResidual:
            module.__class__ = _Residual


class _Separable(DepthwiseSeparableConv):
    """A depthwise and a pointwise convolution, without what the Lite variants leave out."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h', w')."""
        y = folded(self.conv_pw, self.bn2, folded(self.conv_dw, self.bn1, x))
        return y + x if self.has_skip else y


class _Residual(InvertedResidual):
    """A pointwise, a depthwise and a pointwise convolution, without what the Lite variants leave out."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h', w')."""
        y = folded(self.conv_dw, self.bn2, folded(self.conv_pw, self.bn1, x))
        y = folded(self.conv_pwl, self.bn3, y)
        return y + x if self.has_skip else y


def folded(conv: nn.Module, norm: BatchNormAct2d, x: Tensor) -> Tensor:
    """Returns `norm(conv(x))`, equal up to rounding; by one convolution where nobody looks in between.

    Args:
        x: (B, C, h, w).
    """
    if not isinstance(conv, nn.Conv2d) or not _folds(conv, norm, x):  # peft puts layers of its own there
        return norm(conv(x))  # type: ignore[no-any-return]
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shift = norm.bias - mean * scale
    lines = is_pointwise(conv)
    y = _convolve(conv, as_lines(x) if lines else x, scale, shift.detach())
    y = norm.act(_Shifted.apply(y, shift) if shift.requires_grad else y)
    return from_lines(y, len(x)) if lines else y


def _convolve(conv: nn.Conv2d, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    scaled: Scaled | None = getattr(conv, "scaled", None)
    if scaled is not None:
        return scaled(x, scale, shift)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    run: Callable[..., Tensor] = conv2d_same if isinstance(conv, Conv2dSame) else F.conv2d
    return run(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class _Shifted(torch.autograd.Function):
    """Gives a shift, (C,) and in y (B, C, h, w) already, its gradient.

    As the bias of a convolution it would get it with the whole gradient of the weight only.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, shift: Tensor) -> Tensor:
        """Returns y itself."""
        ctx.mark_dirty(y)
        ctx.dtype = shift.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient, and its sums over all pixels."""
        return grad, grad.sum((0, 2, 3), dtype=ctx.dtype)


def _folds(conv: nn.Conv2d, norm: BatchNormAct2d, x: Tensor) -> bool:
    """Whether training goes through both layers, their statistics are frozen and nobody looks in between.

    What scores, evaluates, predicts or fills caches is in evaluation mode, and has the bits of the two layers.
    """
    if not conv.training or norm.training or conv.bias is not None:
        return False
    if hasattr(conv, "scaled") and norm.weight.requires_grad:
        return False  # the gradient of a scale needs that of all entries
    if not any(tensor.requires_grad for tensor in (x, *conv.parameters(), *norm.parameters())):
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in (conv, norm))
