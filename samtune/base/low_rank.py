"""The best approximation of a matrix by one of a given rank, as two factors."""

import torch
from torch import Tensor


def principal_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns up (out, rank) and down (rank, in), float64 on the CPU: `up @ down` is the nearest matrix of that rank.

    With the singular value decomposition U S V^T, up is U S^(1/2) and down is S^(1/2) V^T of the largest `rank`
    values, in falling order. They come from the eigenvectors of the smaller of the two Gram matrices, which costs far
    less than the decomposition; in float64, what is lost lies below 1e-8 of the largest value.

    Args:
        matrix: (out, in), of any float type.
        rank: from 1 to min(out, in).
    """
    wide = matrix.detach().cpu().double()
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.T if tall else wide
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    roots = values[-rank:].flip(0).clamp_min(0).pow(0.25)  # of the singular values
    first = vectors[:, -rank:].flip(1) * roots
    second = first.T @ wide / roots.square().clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return (second.T.contiguous(), first.T.contiguous()) if tall else (first, second)
