"""Modules that train beside the base: LoRA, adapters, scales and shifts, prompts, and layers before the head.

A hook of its host calls each (`samtune.tuning.hooks`). Its parameters are fp32 or better. Linear maps run in the dtype
of their input, so a module works under autocast, and beside a base in bf16.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from samtune.errors import CheckpointError, unknown_name
from samtune.models.backbone import Backbone, is_pointwise
from samtune.selection.selection import Addition


class Added(nn.Module):
    """Base of the kinds; the host, where it goes, says its sizes.

    Attributes:
        before: whether it maps the host's input; else it maps the host's output, knowing the input.
        handles: its hooks.

    Without `before`, `forward(x, y)` takes what went into the host and what came out of it, and returns what stands
    for the output, in its shape and dtype; with it, `forward(x)` returns what the host gets. `(..., C)` is (B, N, C)
    for tokens, (B, h, w, C) for cells and (B, C) for features.
    """

    before: ClassVar[bool] = False

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__()
        if isinstance(host, nn.Sequential):
            raise CheckpointError(_misfit(addition, host, "it would run the addition as one more of its layers"))
        self.handles: list[RemovableHandle] = []

    def start(self, generator: torch.Generator) -> None:
        """Sets the values to start from, on the CPU; one generator starts all additions, in their order."""
        raise NotImplementedError


class Folding(Added):
    """Base of the kinds that end as new values of their host's tensors.

    A state dict never holds them: it has the stock keys, with what these are worth together with the addition.
    """

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the host's tensors that change, worth what host and addition are together.

        Args:
            tensors: the host's `weight` (out, in) or (out, in/groups, kh, kw) or (C,), and `bias` (out,) if it has one;
                the new ones have their shapes, are computed in float64 and rounded once to their dtype.
        """
        raise NotImplementedError

    def clear(self) -> None:
        """Makes it the identity."""
        raise NotImplementedError

    def start(self, generator: torch.Generator) -> None:
        """Starts as the identity; draws nothing."""
        self.clear()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Saves nothing: the host's tensors carry the values."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _, strict, _, unexpected_keys, _ = rest
        if strict:
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix))


class LoRA(Folding):
    """y += alpha / rank * up(down(x)), on all rows or some (Hu et al., arXiv:2106.09685, eq. 3).

    Attributes:
        down: (rank, in) fp32 or better.
        up: (rows, rank), rows being those of the host's outputs that it acts on.
    """

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        if not isinstance(host, nn.Linear) and not is_pointwise(host):
            raise CheckpointError(_misfit(addition, host, "lora needs an nn.Linear or a pointwise convolution"))
        self.axis = -1 if isinstance(host, nn.Linear) else 1
        outputs, inputs = host.weight.shape[:2]
        self.rows = addition.rows or (0, outputs)
        if not 0 <= self.rows[0] < self.rows[1] <= outputs:
            raise CheckpointError(_misfit(addition, host, f"it has {outputs} rows, not {self.rows}"))
        rank = int(addition.options["rank"])
        self.scale = float(addition.options["alpha"]) / rank
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(self.rows[1] - self.rows[0], rank))

    def start(self, generator: torch.Generator) -> None:
        """Draws `down` uniformly from +-1 / sqrt(in), and sets `up` to zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        self.clear()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps (..., in) and (..., out) to (..., out); of a convolution, (B, in, h, w) and (B, out, h, w)."""
        x, y = x.movedim(self.axis, -1), y.movedim(self.axis, -1)
        low = F.linear(x, self.down.to(x.dtype))
        return _add_rows(y, F.linear(low, self.up.to(low.dtype)) * self.scale, self.rows).movedim(-1, self.axis)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the (out, in) or (out, in, 1, 1) weight with alpha / rank * up @ down added to its rows."""
        weight, rows = tensors["weight"].detach().clone(), slice(*self.rows)
        change = (self.scale * (_double(self.up) @ _double(self.down))).view(-1, *weight.shape[1:])
        weight[rows] = (_double(weight[rows]) + change).to(weight)
        return {"weight": weight}

    def clear(self) -> None:
        """Sets `up` to zero."""
        nn.init.zeros_(self.up)


class ScaleShift(Folding):
    """y = y * scale + shift, per channel (SSF; Lian et al., arXiv:2210.08823, eq. 3).

    Attributes:
        scale: (C,) fp32 or better, 1 at the start.
        shift: (C,), 0 at the start; None where the host has no bias to fold it into.
    """

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        dim, weight = int(addition.options["dim"]), host._parameters.get("weight")
        if weight is None or len(weight) != dim or isinstance(host, nn.modules.conv._ConvTransposeNd):
            raise CheckpointError(_misfit(addition, host, f"ssf needs a linear, conv or norm with {dim} channels"))
        if addition.options["shift"] and host._parameters.get("bias") is None:
            raise CheckpointError(_misfit(addition, host, "it has no bias to fold the shift into"))
        # what has its channels on axis 1 is called a something-2d; in transformers, it says so
        self.on_axis_1 = getattr(host, "data_format", None) == "channels_first" or any(
            cls.__name__.endswith(("2d", "GroupNorm")) for cls in type(host).__mro__
        )
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim)) if addition.options["shift"] else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps y of (..., C), or (B, C, h, w) of a host that has its channels there, to the same; x is not read."""
        shape = (-1, 1, 1) if self.on_axis_1 else (-1,)
        scaled = y * self.scale.view(shape)  # in fp32 also for y in bf16, which has no number between 1 and 1.008
        return (scaled if self.shift is None else scaled + self.shift.view(shape)).to(y.dtype)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weight with output channel c times scale[c], and the (C,) bias times scale plus shift."""
        weight, scale = tensors["weight"].detach(), _double(self.scale)
        folded = {"weight": (_double(weight) * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight)}
        if "bias" in tensors:
            bias = _double(tensors["bias"]) * scale
            folded["bias"] = (bias if self.shift is None else bias + _double(self.shift)).to(tensors["bias"])
        return folded

    def clear(self) -> None:
        """Sets scales to one and shifts to zero."""
        nn.init.ones_(self.scale)
        if self.shift is not None:
            nn.init.zeros_(self.shift)


class Adapter(Added):
    """y += up(relu(down(y))), linear to the bottleneck and back, on all rows or some (arXiv:1902.00751, sec. 2.1)."""

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        dim, width = int(addition.options["dim"]), int(addition.options["width"])
        self.rows, self.axis = addition.rows or (0, dim), int(addition.options.get("axis", -1))
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)

    def start(self, generator: torch.Generator) -> None:
        """Draws the weight of `down` uniformly from +-1 / sqrt(C); its bias and all of `up` are zero."""
        _start_linear(self.down, generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps y of (..., C), or (B, C, h, w) with `axis` 1, to the same; x is not read."""
        y = y.movedim(self.axis, -1)
        low = _linear(self.down, y[..., slice(*self.rows)])
        return _add_rows(y, _linear(self.up, low.relu()), self.rows).movedim(-1, self.axis)


class AdaptFormer(Adapter):
    """y += scale * up(relu(down(x))), x the host's input (Chen et al., arXiv:2205.13535, eq. 3)."""

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        self.scale = float(addition.options["scale"])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps x and y, both (..., C), to (..., C)."""
        low = _linear(self.down, x)
        return y + (_linear(self.up, low.relu()) * self.scale).to(y.dtype)


class Prompt(Added):
    """Learned tokens behind the others, from the host block to the block `until` (Jia et al., arXiv:2203.12119).

    Attributes:
        tokens: (n, C) fp32 or better.
    """

    before = True

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        self.until = str(addition.options["until"])
        self.tokens = nn.Parameter(torch.empty(int(addition.options["count"]), int(addition.options["dim"])))

    def start(self, generator: torch.Generator) -> None:
        """Draws the tokens uniformly, with variance 1 / C."""
        bound = math.sqrt(3 / self.tokens.shape[1])
        nn.init.uniform_(self.tokens, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, C) to (B, N + n, C)."""
        return torch.cat([x, self.tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1)


class HeadLayers(Added):
    """Layers of a linear map from C to C channels and GELU, before the head (MLP-k)."""

    before = True

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        dim = int(addition.options["dim"])
        self.layers: Any = nn.ModuleList(nn.Linear(dim, dim) for _ in range(int(addition.options["layers"])))

    def start(self, generator: torch.Generator) -> None:
        """Draws the weights uniformly from +-1 / sqrt(C); the biases are zero."""
        for layer in self.layers:
            _start_linear(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) features to the same."""
        for layer in self.layers:
            x = F.gelu(_linear(layer, x))
        return x


KINDS: dict[str, type[Added]] = {
    "lora": LoRA, "adapter": Adapter, "adaptformer": AdaptFormer, "ssf": ScaleShift, "prompt": Prompt,
    "mlp": HeadLayers,
}  # fmt: skip


def build_added(model: Backbone, addition: Addition) -> Added:
    """Returns the module of an addition that fits the model, on the meta device: it has sizes, but no values yet.

    Raises:
        CheckpointError: an unknown kind, or a host of the wrong class or size.
    """
    if addition.kind not in KINDS:
        raise CheckpointError(unknown_name("kind of addition", addition.kind, KINDS))
    with torch.device("meta"):
        return KINDS[addition.kind](model.net.get_submodule(addition.module), addition)


def _misfit(addition: Addition, host: nn.Module, reason: str) -> str:
    """Words why an addition can't go on a host."""
    return (
        f"the selection puts {addition.kind} on {addition.module}, a {type(host).__name__}: {reason}. "
        "Is it another model's selection?"
    )


def _add_rows(y: Tensor, change: Tensor, rows: tuple[int, int]) -> Tensor:
    """Returns y with `change` added to its channels start:stop."""
    if rows == (0, y.shape[-1]):
        return y + change.to(y.dtype)
    return y.slice_scatter(y[..., slice(*rows)] + change.to(y.dtype), -1, *rows)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _start_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(layer.bias)


def _double(tensor: Tensor) -> Tensor:
    """Returns the values in float64; MPS has no such type."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)
