"""Criteria: what makes an entry of a weight worth training, as a number of its own, before anything trains.

| criterion | number | of |
|---|---|---|
| `gradient` | `abs(sum of g)` | GPS (Zhang et al., CVPR 2024), the method; SHiRA's "grad" (arXiv:2406.13175) |
| `snip` | `abs(w * sum of g)` | SNIP (Lee et al., arXiv:1810.02340, eq. 4), SHiRA's "SNIP" |
| `fisher` | `sum of g^2`, one g per image | FISH Mask (Sung et al., arXiv:2111.09839): empirical Fisher information |
| `fps` | `abs(w) * mean of abs(x)` | FPS (arXiv:2510.27359, version 1): the mean of abs(w) abs(x), as w is constant |
| `magnitude` | `abs(w)` | GPS, Tab. 6; NeuroAda (arXiv:2510.18940); SHiRA's "WM" |
| `smallest` | `-abs(w)` | SaRA (arXiv:2409.06633), its choice alone |
| `low_rank` | `abs(w')`, w' of the best rank-r part | LIFT (arXiv:2506.00772), chosen once |
| `random` | a uniform number | GPS, Tab. 6; SHiRA's "rand" |

g is the gradient of a scoring loss, x what a layer takes as its input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samtune.base.low_rank import principal_factors
from samtune.models.backbone import Backbone
from samtune.selection.matrices import weight_matrices
from samtune.selection.selector import Needs
from samtune.types import Scores

Criterion = Literal["gradient", "magnitude", "random", "snip", "fisher", "fps", "smallest", "low_rank"]
Tables = Iterator[tuple[str, Tensor]]
"""Weight names, each with (out, in), no entry negative: the larger, the better. One at a time: all are as the model."""

RANK_SHARE = 32
"""Of `low_rank`: r is the shorter side of a matrix divided by this; LIFT's release recommends 128 of 4,096."""


@dataclass(frozen=True)
class Rule:
    """A criterion: the scoring pass that it needs, None for none, and `(model, scores, seed)` to its numbers."""

    needs: Needs | None
    importance: Callable[[Backbone, Scores | None, int], Tables]


def _gradient(model: Backbone, scores: Scores | None, _: int) -> Tables:
    sums = _found(scores).sums
    return ((name, sums[name].abs().flatten(1)) for name in weight_matrices(model))


def _snip(model: Backbone, scores: Scores | None, _: int) -> Tables:
    sums = _found(scores).sums
    return ((n, (matrix * sums[n].to(matrix.device).flatten(1)).abs()) for n, matrix in weight_matrices(model).items())


def _fisher(model: Backbone, scores: Scores | None, _: int) -> Tables:
    squares = _found(scores).squares
    assert squares is not None  # `check_scores` refuses scores without
    return ((name, squares[name].flatten(1)) for name in weight_matrices(model))


def _fps(model: Backbone, scores: Scores | None, _: int) -> Tables:
    inputs = _found(scores).sums
    return ((name, matrix.abs() * _per_row(inputs[name], matrix)) for name, matrix in weight_matrices(model).items())


def _per_row(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Spreads the inputs of a layer, (in,) or (in, kh, kw), over the rows of its (out, in) matrix.

    The rows of a group of a convolution take the inputs of that group; all rows of a linear layer take the same.
    """
    groups = inputs.to(matrix.device).view(-1, matrix.shape[1])  # (groups, in)
    return groups if len(groups) == 1 else groups.repeat_interleave(len(matrix) // len(groups), 0)


def _magnitude(model: Backbone, scores: Scores | None, _: int) -> Tables:
    return ((name, matrix.abs()) for name, matrix in weight_matrices(model).items())


def _smallest(model: Backbone, scores: Scores | None, _: int) -> Tables:
    return ((name, _reversed(matrix.abs())) for name, matrix in weight_matrices(model).items())


def _reversed(values: Tensor) -> Tensor:
    """Maps floats that are not negative to such in the opposite order, exactly: read as integers, they have theirs."""
    values = values.contiguous() if values.dtype == torch.float64 else values.float().contiguous()
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    largest = torch.full((), torch.inf, dtype=values.dtype, device=values.device).view(integer)
    return (largest - values.view(integer)).view(values.dtype)


def _low_rank(model: Backbone, scores: Scores | None, _: int) -> Tables:
    fused = model.fused()
    return (
        (name, torch.cat([_principal(part).abs() for part in matrix.chunk(fused.get(name, 1))]))
        for name, matrix in weight_matrices(model).items()
    )


def _principal(matrix: Tensor) -> Tensor:
    """Returns the best approximation of an (out, in) matrix by one of rank min(out, in) / `RANK_SHARE`, at least 1."""
    up, down = principal_factors(matrix, max(1, min(matrix.shape) // RANK_SHARE))
    return (up @ down).to(matrix)


def _random(model: Backbone, scores: Scores | None, seed: int) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    return ((name, torch.rand(m.shape, generator=generator)) for name, m in weight_matrices(model).items())


def _found(scores: Scores | None) -> Scores:
    assert scores is not None  # `select` refuses missing scores
    return scores


CRITERIA: dict[Criterion, Rule] = {
    "gradient": Rule(Needs("contrastive"), _gradient),  # as no random head may take part (GPS, section 3.1)
    "snip": Rule(Needs("contrastive"), _snip),  # the pass of GPS, so that the criteria differ in one thing
    "fisher": Rule(Needs("task", per="sample", squares=True), _fisher),  # the pass of SPT
    "fps": Rule(Needs(None), _fps),
    "magnitude": Rule(None, _magnitude),
    "smallest": Rule(None, _smallest),
    "low_rank": Rule(None, _low_rank),
    "random": Rule(None, _random),
}
