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
        ConfigError: as `check_gps`.
    """
    check_gps(model, per_neuron=per_neuron)
    names = [name for name, role in model.roles().items() if role in ("linear", "conv")]
    return Selection({name: _top_per_row(scores.sums[name].abs().flatten(1), per_neuron) for name in names})


def check_gps(model: SamModel, *, per_neuron: int = 1) -> None:
    """Refuses a K that does not fit the model; known before a scoring pass is spent on it.

    Raises:
        ConfigError: K below 1, or larger than the number of inputs of some neuron.
    """
    if per_neuron < 1:
        raise ConfigError(f"select.per_neuron is {per_neuron}; it must be at least 1 (for none: select.name=linear).")
    roles = model.roles()
    inputs = {name: p[0].numel() for name, p in model.named_parameters() if roles[name] in ("linear", "conv")}
    name = min(inputs, key=inputs.__getitem__)
    if per_neuron > inputs[name]:
        raise ConfigError(
            f"select.per_neuron is {per_neuron}, but the neurons of {name} have {inputs[name]} inputs: "
            "that is the largest K."
        )


def _top_per_row(importance: Tensor, count: int) -> Tensor:
    """Returns the sorted flat indices of the `count` largest entries of each row; ties go to the lowest index."""
    columns = importance.shape[1]
    # stable: torch.topk promises no order among equals
    top = importance.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    rows = torch.arange(len(importance), device=top.device)[:, None]
    return (rows * columns + top).flatten().cpu()
