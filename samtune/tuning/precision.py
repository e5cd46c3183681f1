"""Keep the frozen base in bfloat16 or in 8 bits while it trains, and put it back: a half or a quarter of its memory.

Under bfloat16 autocast every linear and conv layer rounds its weight before use, so a weight that is stored rounded
gives the same answers bit for bit; but for training through convolutions that take in the norm behind them, which are
rounded a second time. 8 bits are other numbers: what trains does so on the rounded base, and answers move
a little when the base is put back. Tuned entries keep their fp32 values, and biases, norms and position tables stay as
they are.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from samtune.errors import CheckpointError, ConfigError
from samtune.models.backbone import Backbone
from samtune.tuning.compact import SCALE, CompactLinear, CompactModule, RoundedLinear
from samtune.tuning.product import Rounded

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def lower_base(model: Backbone, dtype: torch.dtype) -> None:
    """Stores the frozen weights of linear and conv layers in a low precision, one of `LOW`, in place.

    Until `restore_base`, the model runs under autocast to the same dtype only (stock layers refuse fp32 inputs
    otherwise), and its state dict is the rounded one. Entries that are tuned later start from the rounded weights.

    torch.int8 is for linear layers alone, each row by a scale of its own; the model runs in any precision then, and
    its state dict has codes.

    Raises:
        ConfigError: another dtype, or torch.int8 for a model without linear layers.
    """
    if dtype == torch.int8:
        return _round_linears(model)
    if dtype not in LOW.values():
        raise ConfigError(f"the frozen base can't be stored as {dtype}. Allowed: {', '.join(LOW)}.")
    for _, weight in _weights(model):
        if not weight.requires_grad:
            weight.data = weight.data.to(dtype)


def is_lowered(model: Backbone) -> bool:
    """Whether some weight of a linear or conv layer is stored in a low precision."""
    return any(weight.dtype in LOW.values() for _, weight in _weights(model))


def restore_base(model: Backbone, base: Mapping[str, Tensor]) -> None:
    """Undoes `lower_base`: frozen entries are the base's again, bit for bit, and tuned ones their fp32 values.

    Raises:
        CheckpointError: a base without one of the lowered weights, or with another shape of it; nothing is changed.
    """
    lowered = {name: weight for name, weight in _weights(model) if weight.dtype in LOW.values()}
    for name, weight in lowered.items():
        if name not in base or base[name].shape != weight.shape:
            found = f"has {tuple(base[name].shape)}" if name in base else "has no such tensor"
            raise CheckpointError(
                f"{name} of the model is {tuple(weight.shape)}, but the base {found}; "
                "pass the state dict that the model had before it was lowered."
            )
    for name, weight in lowered.items():
        weight.data = base[name].detach().to(weight.device, copy=True)
    for module in model.modules():
        module._buffers.pop(SCALE, None)
        if isinstance(module, CompactModule):
            module.written_version = -1  # the base has none of the tuned values
        if type(module) is RoundedLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]


def check_rounding(model: Backbone) -> None:
    """Raises a `ConfigError` for a model without linear layers outside of decoder and head, which 8 bits are about."""
    if not _linears(model):
        raise ConfigError(
            f"tune.base: int8 is for linear layers, and {model.name} has none outside of its decoder or head. "
            "Use fp32 or bf16."
        )


def _round_linears(model: Backbone) -> None:
    check_rounding(model)
    for module, weight in _linears(model):
        if weight.requires_grad:
            continue
        rounded = Rounded.of(weight.detach())
        weight.data = rounded.codes
        module.register_buffer(SCALE, rounded.scale, persistent=False)
        if type(module) is nn.Linear:
            module.__class__ = RoundedLinear


def _linears(model: Backbone) -> list[tuple[nn.Module, nn.Parameter]]:
    found = [(model.net.get_submodule(name.rpartition(".")[0]), weight) for name, weight in _weights(model)]
    return [(module, weight) for module, weight in found if type(module) in (nn.Linear, CompactLinear)]


def _weights(model: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the weights of linear and conv layers outside of decoder and head."""
    parameters = dict(model.net.named_parameters())
    for name, role in model.roles().items():
        if role in ("linear", "conv") and name.endswith(".weight"):  # not the values of a compact module
            yield name, parameters[name]
