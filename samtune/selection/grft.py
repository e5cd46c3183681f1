"""GRFT: whole rows or columns by the sum of squared gradients (eq. 4 and 5, Algorithm 1 of the paper)."""

from typing import Literal

import torch
from torch import Tensor

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection.gps import gps, gps_size
from samtune.selection.matrices import limiting_matrices, log_short, weight_matrices
from samtune.selection.selection import Selection
from samtune.types import Scores

Pattern = Literal["rows", "columns", "sparse"]


def grft(model: Backbone, scores: Scores, *, pattern: Pattern = "rows", k: int = 1) -> Selection:
    """Selects in every weight matrix the k rows with the largest S_i = sum over j of h_ij^2 (eq. 4).

    H is the signed sum of the gradients. Convolutions count as (out, in/groups * kh * kw), a fused qkv as one matrix.

    Args:
        pattern: rows, columns, or single entries as in GPS (the paper's ablation, Tab. 4).
        k: rows or columns per matrix, entries per row for `sparse`; one that passes `check_grft`.
    """
    if pattern == "sparse":
        return gps(model, scores, per_neuron=k)
    axis = _axis(pattern)
    log_short(weight_matrices(model), axis, k)
    return Selection({name: _largest(scores.sums[name].flatten(1), axis, k) for name in weight_matrices(model)})


def grft_size(model: Backbone, *, pattern: Pattern = "rows", k: int = 1) -> int:
    """Returns k times the length of a row (or column), as far as there are k, summed over the matrices."""
    if pattern == "sparse":
        return gps_size(model, per_neuron=k)
    axis = _axis(pattern)
    return sum(min(k, m.shape[axis]) * m.shape[1 - axis] for m in weight_matrices(model).values())


def check_grft(model: Backbone, *, pattern: Pattern = "rows", k: int = 1) -> None:
    """Refuses a k that does not fit the model.

    Raises:
        ConfigError: k above the number of rows (or columns) of some matrix, but a depthwise one.
    """
    axis, matrices = _axis(pattern), limiting_matrices(model)
    name = min(matrices, key=lambda name: matrices[name].shape[axis])
    largest = matrices[name].shape[axis]
    if k > largest:
        short = "rows" if axis == 0 else "columns"
        raise ConfigError(f"select.k is {k}, but {name} has {largest} {short}: that is the largest k.")


def _axis(pattern: Pattern) -> int:
    """Returns the axis that k counts along; `sparse` takes k entries of each row, so the columns are its limit."""
    return 0 if pattern == "rows" else 1


def _largest(gradient: Tensor, axis: int, count: int) -> Tensor:
    """Returns the sorted flat indices of the `count` rows (axis 0) or columns (axis 1) of the largest S."""
    sums = gradient.square().sum(1 - axis)
    chosen = sums.sort(descending=True, stable=True).indices[:count]
    every = torch.arange(gradient.numel(), device=chosen.device).view(gradient.shape)
    return every.index_select(axis, chosen).flatten().sort().values.cpu()
