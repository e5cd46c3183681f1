"""What do the layers of a network take in? The mean |x| of each input of each weight, by forward passes alone.

The operations are watched, not the layers: whatever code multiplies by a weight itself, its input is seen as it is,
with the padding of a convolution. A weight inside a fused operation, such as torch's own attention, is not seen.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from samtune.models.backbone import Backbone


def input_shapes(model: Backbone) -> dict[str, tuple[int, ...]]:
    """Returns the name of each linear and conv weight -> shape of what one of its positions takes in.

    That is (in,) of a linear layer, and (in, kh, kw) of a convolution, with the inputs of all its groups.
    """
    roles, shapes = model.roles(), dict[str, tuple[int, ...]]()
    for name, weight in model.net.named_parameters():
        if roles[name] in ("linear", "conv"):
            groups = getattr(model.net.get_submodule(name.rpartition(".")[0]), "groups", 1)
            shapes[name] = (weight.shape[1] * groups, *weight.shape[2:])
    return shapes


class InputSums(TorchFunctionMode):
    """Sums over images of the mean |x| over the positions of an image: tokens, pixels, windows with their padding.

    Attributes:
        sums: weight name -> see `input_shapes`, fp32, of the images that were added.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        parameters = dict(model.net.named_parameters())
        self.sums = {n: torch.zeros(s, device=parameters[n].device) for n, s in input_shapes(model).items()}
        self._names = {id(parameters[name]): name for name in self.sums}
        self._now: dict[str, tuple[Tensor, int]] = {}  # of the images that pass now: sum over positions, positions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._take(*_linear_inputs(*args, **kwargs))
        elif func is F.conv2d:
            self._take(*_conv_inputs(*args, **kwargs))
        return func(*args, **kwargs)

    def _take(self, weight: Tensor, x: Tensor, positions: int) -> None:
        """Adds |x|, summed over positions, to what the weight has of these images; it may be used more than once."""
        if (name := self._names.get(id(weight))) is None:
            return
        total, count = self._now.get(name, (0, 0))
        self._now[name] = (total + x, count + positions)

    def add(self, images: int) -> None:
        """Counts what passed since the last time as so many images."""
        for name, (total, positions) in self._now.items():
            self.sums[name] += total * (images / positions)
        self._now.clear()


def _linear_inputs(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
    """Returns the weight, (in,) sums of |x| over all positions of (..., in), and their number."""
    flat = input.reshape(-1, input.shape[-1])
    return weight, torch.linalg.vector_norm(flat, 1, dim=0, dtype=torch.float32), len(flat)


def _conv_inputs(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, int]:
    """Returns the weight, (in, kh, kw) sums of |x| at each tap over all positions of the output, and their number."""
    (tall, wide), (down, right), (each_down, each_right) = weight.shape[2:], _pair(dilation), _pair(stride)
    images = input.unsqueeze(0) if input.ndim == 3 else input
    total = torch.linalg.vector_norm(images, 1, dim=0, dtype=torch.float32)  # (in, h, w): each tap sums over images
    total = F.pad(total, _margins(padding, (down * (tall - 1), right * (wide - 1))))
    height = (total.shape[1] - down * (tall - 1) - 1) // each_down + 1  # of the output
    width = (total.shape[2] - right * (wide - 1) - 1) // each_right + 1
    taps = [
        total[:, i : i + each_down * (height - 1) + 1 : each_down, j : j + each_right * (width - 1) + 1 : each_right]
        for i in range(0, down * tall, down)
        for j in range(0, right * wide, right)
    ]
    sums = torch.stack([tap.sum((1, 2)) for tap in taps], 1)  # (in, kh * kw)
    return weight, sums.view(-1, tall, wide), len(images) * height * width


def _margins(padding: Any, reach: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns zeros to add at the left, right, top and bottom; `reach` is what a kernel covers beyond a pixel."""
    if padding == "valid":
        padding = 0
    if padding == "same":  # what is odd goes to the right and to the bottom
        left, top = reach[1] // 2, reach[0] // 2
        return left, reach[1] - left, top, reach[0] - top
    above, beside = _pair(padding)
    return beside, beside, above, above


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) == 2 else (value[0], value[0])
