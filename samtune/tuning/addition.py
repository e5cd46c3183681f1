"""What a module that trains beside the base is, and what one is that ends as new values of its host's tensors.

Its parameters are fp32 or better. Linear maps run in the dtype of their input, so that it works under autocast, and
beside a base in bf16.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from samtune.errors import CheckpointError
from samtune.selection.selection import Addition


class Added(nn.Module):
    """Base of the kinds; the host, where it goes, says its sizes.

    Attributes:
        before: whether it maps the host's input; else it maps the host's output, knowing the input.
        handles: its hooks.

    Without `before`, `forward(x, y, host)` takes what went into the host and what came out of it, and returns what
    stands for the output, in its shape and dtype; with it, `forward(x)` returns what the host gets. `(..., C)` is
    (B, N, C) for tokens, (B, h, w, C) for cells and (B, C) for features.
    """

    before: ClassVar[bool] = False

    def __init__(self, host: nn.Module, addition: Addition) -> None:
        super().__init__()
        if isinstance(host, nn.Sequential):
            raise CheckpointError(misfit(addition, host, "it would run the addition as one more of its layers"))
        self.handles: list[RemovableHandle] = []

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
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

    def clear(self, host: nn.Module) -> None:
        """Makes it the identity on its host as it is."""
        raise NotImplementedError

    def start(self, generator: torch.Generator, host: nn.Module) -> None:
        """Starts as the identity; draws nothing."""
        self.clear(host)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Saves nothing: the host's tensors carry the values."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _, strict, _, unexpected_keys, _ = rest
        if strict:
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix))


def misfit(addition: Addition, host: nn.Module, reason: str) -> str:
    """Words why an addition can't go on a host."""
    return (
        f"the selection puts {addition.kind} on {addition.module}, a {type(host).__name__}: {reason}. "
        "Is it another model's selection?"
    )


def add_rows(y: Tensor, change: Tensor, rows: tuple[int, int]) -> Tensor:
    """Returns y with `change` added to its channels start:stop."""
    if rows == (0, y.shape[-1]):
        return y + change.to(y.dtype)
    return y.slice_scatter(y[..., slice(*rows)] + change.to(y.dtype), -1, *rows)


def double(tensor: Tensor) -> Tensor:
    """Returns the values in float64; MPS has no such type."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)
