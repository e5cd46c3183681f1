"""Low-rank changes of a linear map: LoRA, and what starts or scales it otherwise, DoRA and PiSSA."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtune.base.low_rank import principal_factors
from samtune.errors import CheckpointError
from samtune.models.backbone import is_pointwise
from samtune.selection.selection import Addition
from samtune.tuning.addition import Folding, add_rows, double, misfit
from samtune.tuning.compact import rounded_weight


class LoRA(Folding):
    """y += alpha / rank * up(down(x)), on all rows or some (Hu et al., arXiv:2106.09685, eq. 3).

    Attributes:
        down: (rank, in) fp32 or better.
        up: (rows, rank), rows being those of the host's outputs that it acts on.
    """

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        if not isinstance(host, nn.Linear) and not is_pointwise(host):
            raise CheckpointError(
                misfit(addition, host, f"{addition.kind} needs an nn.Linear or a pointwise convolution")
            )
        self.axis = -1 if isinstance(host, nn.Linear) else 1
        outputs, inputs = host.weight.shape[:2]
        self.rows = addition.rows or (0, outputs)
        if not 0 <= self.rows[0] < self.rows[1] <= outputs:
            raise CheckpointError(misfit(addition, host, f"it has {outputs} rows, not {self.rows}"))
        rank = int(addition.options["rank"])
        self.scale = float(addition.options["alpha"]) / rank
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(self.rows[1] - self.rows[0], rank))

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
        """Draws `down` uniformly from +-1 / sqrt(in), and sets `up` to zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        self.clear(host)

    def forward(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Maps (..., in) and (..., out) to (..., out); of a convolution, (B, in, h, w) and (B, out, h, w)."""
        x, y = x.movedim(self.axis, -1), y.movedim(self.axis, -1)
        return add_rows(y, self.change(x, y[..., slice(*self.rows)], host), self.rows).movedim(-1, self.axis)

    def change(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Returns what is added to the (..., rows) output y of the rows, for the (..., in) input x."""
        return product(x, self.down, self.up) * self.scale

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the (out, in) or (out, in, 1, 1) weight with its rows as they are with the addition."""
        weight, rows = tensors["weight"].detach().clone(), slice(*self.rows)
        weight[rows] = self.folded(weight[rows].flatten(1)).to(weight).view_as(weight[rows])
        return {"weight": weight}

    def folded(self, weight: Tensor) -> Tensor:
        """Returns the (rows, in) weight together with the addition, in float64: here W + alpha / rank * up @ down."""
        return double(weight) + self.scale * (double(self.up) @ double(self.down))

    def clear(self, host: nn.Module) -> None:
        """Sets `up` to zero."""
        nn.init.zeros_(self.up)


class DoRA(LoRA):
    """y = magnitude * (W + dW) x / |W + dW| + b, dW as of LoRA, |.| the length of each row (arXiv:2402.09353, eq. 5).

    The length counts as a constant in the backward pass (section 4.3). Beside a base in bf16 it is that of the rounded
    weight, while the magnitudes start from the exact one.

    Attributes:
        magnitude: (rows,), the length of each row of W at the start.
    """

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        self.magnitude = nn.Parameter(torch.empty(self.rows[1] - self.rows[0]))

    def change(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Returns (factor - 1) * (y - b) + factor * dW x, with factor = magnitude / |W + dW|: nothing at the start."""
        factor, bias = self._factor(_weight(host, self.rows)), host._parameters.get("bias")
        plain = y if bias is None else y - bias[slice(*self.rows)].to(y.dtype)
        return (factor - 1).to(y.dtype) * plain + factor.to(y.dtype) * super().change(x, y, host)

    def folded(self, weight: Tensor) -> Tensor:
        """Returns magnitude * (W + dW) / |W + dW|."""
        return double(self._factor(weight))[:, None] * super().folded(weight)

    def clear(self, host: nn.Module) -> None:
        """Sets `up` to zero, and the magnitudes to the lengths of the host's rows."""
        super().clear(host)
        with torch.no_grad():
            rows = _weight(host, self.rows).to(self.magnitude.dtype)
            self.magnitude.copy_(torch.linalg.vector_norm(rows, dim=1))

    def _factor(self, weight: Tensor) -> Tensor:
        """Returns magnitude / |W + dW|, (rows,), of a (rows, in) weight: 1, exactly, after `clear`."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):  # as it will be folded
            whole = weight.to(self.magnitude.dtype) + self.scale * (self.up @ self.down)
            length = torch.linalg.vector_norm(whole, dim=1)
        factor: Tensor = self.magnitude / length.clamp_min(torch.finfo(length.dtype).tiny)
        return factor


class PiSSA(LoRA):
    """LoRA that starts from the largest singular values of W, of which the base keeps the rest (arXiv:2404.02948).

    Here the base stays whole, and what the factors are at the start is taken off: W - up0 down0 + up down, with the
    same gradient. It costs a second low-rank product.

    Attributes:
        down, up: as of LoRA; at the start S^(1/2) V^T and U S^(1/2) of the decomposition of W, by the scale.
        first_down, first_up: the same at the start, frozen.
    """

    first_down: Tensor
    first_up: Tensor

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        self.register_buffer("first_down", torch.empty_like(self.down), persistent=False)
        self.register_buffer("first_up", torch.empty_like(self.up), persistent=False)

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
        """Sets the factors; draws nothing."""
        up, down = principal_factors(_weight(host, self.rows), len(self.down))
        with torch.no_grad():
            self.up.copy_(up / math.sqrt(self.scale))
            self.down.copy_(down / math.sqrt(self.scale))
        self.clear(host)

    def change(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Returns the product of the factors less that of the first ones: nothing, exactly, while they are equal."""
        return super().change(x, y, host) - product(x, self.first_down, self.first_up) * self.scale

    def folded(self, weight: Tensor) -> Tensor:
        """Returns W + alpha / rank * (up @ down - up0 @ down0)."""
        own = double(self.up) @ double(self.down)
        return double(weight) + self.scale * (own - double(self.first_up) @ double(self.first_down))

    def clear(self, host: nn.Module) -> None:
        """Takes the factors as they are for the first ones."""
        self.first_down.copy_(self.down.detach())
        self.first_up.copy_(self.up.detach())


def product(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Maps (..., in) by (rank, in) and (rows, rank) to (..., rows), in the dtype of x, or autocast's."""
    low = F.linear(x, down.to(x.dtype))
    return F.linear(low, up.to(low.dtype))


def _weight(host: nn.Module, rows: tuple[int, int]) -> Tensor:
    """Returns the (rows, in) weight of a host, detached."""
    rounded, weight = rounded_weight(host), host._parameters["weight"]
    assert weight is not None
    dense = weight.detach() if rounded is None else rounded.to(torch.float32)
    return dense[slice(*rows)].flatten(1)
