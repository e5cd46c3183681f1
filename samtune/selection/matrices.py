"""Weights as matrices, and the largest entries of them; equal scores go to the lowest index, everywhere."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from samtune.models.backbone import Backbone

logger = logging.getLogger(__name__)


def weight_matrices(model: Backbone) -> dict[str, Tensor]:
    """Returns name -> (out, in) of every linear and conv weight: (out, in/groups * kh * kw); a fused qkv is one."""
    roles = model.roles()
    return {n: p.detach().flatten(1) for n, p in model.net.named_parameters() if roles[n] in ("linear", "conv")}


def limiting_matrices(model: Backbone) -> dict[str, Tensor]:
    """Returns the weight matrices whose sizes limit what may be asked for per row or column: all but depthwise ones.

    A row of a depthwise convolution has kh * kw entries; who asks for more gets all of them.
    """
    shapes = {name: parameter.shape for name, parameter in model.net.named_parameters()}
    matrices = weight_matrices(model)
    return {n: m for n, m in matrices.items() if len(shapes[n]) < 4 or shapes[n][1] > 1} or matrices


def log_short(matrices: Mapping[str, Tensor], axis: int, count: int) -> None:
    """Logs of how many neurons `count` inputs (axis 1) or rows (axis 0) are more than there are."""
    if short := sum(len(matrix) for matrix in matrices.values() if matrix.shape[axis] < count):
        what = "inputs" if axis == 1 else "rows"
        logger.info("%d neurons, depthwise ones, have fewer than %d %s: all of theirs", short, count, what)


def top_per_row(importance: Tensor, count: int) -> Tensor:
    """Returns the flat indices of the `count` largest entries of each row.

    Args:
        importance: (rows, columns).
        count: of a row with fewer columns, all are taken.

    Returns:
        (rows * min(count, columns),) int64 on the CPU, sorted.
    """
    columns = importance.shape[1]
    # stable: torch.topk promises no order among equals
    top = importance.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    rows = torch.arange(len(importance), device=top.device)[:, None]
    return (rows * columns + top).flatten().cpu()


def top_overall(importance: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Finds the `count` largest entries of all tensors together, without joining or sorting them.

    Args:
        importance: name -> tensor of any shape, no entry negative.
        count: at most the number of all entries.

    Returns:
        name -> sorted flat int64 indices on the CPU, for the tensors that have any.
    """
    flat = {name: (t if t.dtype == torch.float64 else t.float()).flatten() for name, t in importance.items()}
    smallest = _kth_largest(list(flat.values()), count)
    ties = count - sum(int((values > smallest).sum()) for values in flat.values())
    chosen = {}
    for name, values in flat.items():
        equal = (values == smallest).nonzero().flatten()[:ties]
        ties -= len(equal)
        indices = torch.cat([(values > smallest).nonzero().flatten(), equal]).sort().values
        if len(indices):
            chosen[name] = indices.cpu()
    return chosen


def _kth_largest(values: list[Tensor], count: int) -> float:
    """Returns the `count`-th largest of all values, by bisection over their bits.

    Floats that are not negative are in the order of their bits read as an integer. Each step only counts, so a model
    of 600 M weights needs no second copy of its scores.
    """
    dtype = values[0].dtype
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    keys = [v.contiguous().view(integer) for v in values]
    low, high = 0, max(int(k.max()) for k in keys)
    while low < high:
        middle = low + (high - low + 1) // 2
        enough = sum(int((k >= middle).count_nonzero()) for k in keys) >= count
        low, high = (middle, high) if enough else (low, middle - 1)
    return torch.tensor(low, dtype=integer).view(dtype).item()
