"""The modules that train beside the base: adapters, scales and shifts, prompts, layers before the head; all kinds.

A hook of its host calls each (`samtune.tuning.hooks`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtune.errors import CheckpointError, unknown_name
from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition
from samtune.tuning.addition import Added, Folding, add_rows, double, misfit
from samtune.tuning.low_rank import DoRA, LoRA, PiSSA


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
            raise CheckpointError(misfit(addition, host, f"ssf needs a linear, conv or norm with {dim} channels"))
        if addition.options["shift"] and host._parameters.get("bias") is None:
            raise CheckpointError(misfit(addition, host, "it has no bias to fold the shift into"))
        # what has its channels on axis 1 is called a something-2d; in transformers, it says so
        self.on_axis_1 = getattr(host, "data_format", None) == "channels_first" or any(
            cls.__name__.endswith(("2d", "GroupNorm")) for cls in type(host).__mro__
        )
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim)) if addition.options["shift"] else None

    def forward(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Maps y of (..., C), or (B, C, h, w) of a host that has its channels there, to the same; x is not read."""
        shape = (-1, 1, 1) if self.on_axis_1 else (-1,)
        scaled = y * self.scale.view(shape)  # in fp32 also for y in bf16, which has no number between 1 and 1.008
        return (scaled if self.shift is None else scaled + self.shift.view(shape)).to(y.dtype)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weight with output channel c times scale[c], and the (C,) bias times scale plus shift."""
        weight, scale = tensors["weight"].detach(), double(self.scale)
        folded = {"weight": (double(weight) * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight)}
        if "bias" in tensors:
            bias = double(tensors["bias"]) * scale
            folded["bias"] = (bias if self.shift is None else bias + double(self.shift)).to(tensors["bias"])
        return folded

    def clear(self, host: nn.Module) -> None:
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

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
        """Draws the weight of `down` uniformly from +-1 / sqrt(C); its bias and all of `up` are zero."""
        _start_linear(self.down, generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Maps y of (..., C), or (B, C, h, w) with `axis` 1, to the same; x is not read."""
        y = y.movedim(self.axis, -1)
        low = _linear(self.down, y[..., slice(*self.rows)])
        return add_rows(y, _linear(self.up, low.relu()), self.rows).movedim(-1, self.axis)


class AdaptFormer(Adapter):
    """y += scale * up(relu(down(x))), x the host's input (Chen et al., arXiv:2205.13535, eq. 3)."""

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__(host, addition)
        self.scale = float(addition.options["scale"])

    def forward(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
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

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
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

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
        """Draws the weights uniformly from +-1 / sqrt(C); the biases are zero."""
        for layer in self.layers:
            _start_linear(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) features to the same."""
        for layer in self.layers:
            x = F.gelu(_linear(layer, x))
        return x


KINDS: dict[str, type[Added]] = {
    "lora": LoRA, "dora": DoRA, "pissa": PiSSA, "adapter": Adapter, "adaptformer": AdaptFormer, "ssf": ScaleShift,
    "prompt": Prompt, "mlp": HeadLayers,
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


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _start_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(layer.bias)
