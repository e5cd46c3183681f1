"""GPS: gradient-based parameter selection (Zhang et al., CVPR 2024, eq. 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from samtune.errors import ConfigError
from samtune.models.sam import SamModel
from samtune.selection.selection import Selection
from samtune.types import Scores


def gps(model: SamModel, scores: Scores, *, per_neuron: int = 1) -> Selection:
    """Selects, for every output neuron of every encoder weight, the K inputs with the largest |gradient|.

    Convolutions count as (out, in/groups * kh * kw); each row of a fused qkv is a neuron.

    Args:
        model: tells which parameters are linear and conv weights.
        scores: signed gradient sums.
        per_neuron: K >= 1.

    Raises:
        ConfigError: K below 1, or larger than the number of inputs of some neuron.
    """
    if per_neuron < 1:
        raise ConfigError(f"select.per_neuron is {per_neuron}; it must be at least 1 (select.name=linear selects none).")
    entries = {}
    for name, role in model.roles().items():
        if role not in ("linear", "conv"):
            continue
        importance = scores.sums[name].abs().flatten(1)
        if per_neuron > importance.shape[1]:
            raise ConfigError(
                f"select.per_neuron is {per_neuron}, but the neurons of {name} have {importance.shape[1]} inputs: "
                f"that is the largest K."
            )
        entries[name] = _top_per_row(importance, per_neuron)
    return Selection(entries)


def _top_per_row(importance: Tensor, count: int) -> Tensor:
    """Returns the sorted flat indices of the `count` largest entries of each row; ties go to the lowest index."""
    columns = importance.shape[1]
    # stable: torch.topk promises no order among equals
    top = importance.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    rows = torch.arange(len(importance), device=top.device)[:, None]
    return (rows * columns + top).flatten().cpu()
