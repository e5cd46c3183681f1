"""Contrastive losses: what scoring differentiates, all in fp32.

`supervised_contrastive` is eq. 2 of GPS (Zhang et al., CVPR 2024), after Khosla et al., arXiv:2004.11362.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from samtune.types import Batch


def supervised_contrastive(features: Tensor, labels: Tensor, *, temperature: float) -> Tensor | None:
    """Pulls features of one class together and pushes the others away.

    For each anchor i with positives P(i) among the others A(i): `-1/|P(i)| * sum_{p in P(i)} log( exp(z_i.z_p / t) /
    sum_{a in A(i)} exp(z_i.z_a / t) )`, z of unit length; mean over the anchors that have a positive.

    Args:
        features: (N, C).
        labels: (N,) class of each feature.
        temperature: t > 0.

    Returns:
        A scalar in fp32, or None where no two features share a class.
    """
    z = F.normalize(features.float(), dim=1)
    similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    count = positive.sum(1)
    anchors = count > 0
    if not bool(anchors.any()):
        return None
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    return (-(log_share * positive).sum(1)[anchors] / count[anchors]).mean()


def pixel_contrastive(
    embeddings: Tensor, batch: Batch, *, cells: int, temperature: float, generator: torch.Generator
) -> Tensor | None:
    """Supervised contrastive loss over cells of the image embedding, labelled by the masks.

    A cell is pure where at least 80 % of its pixels are of one class, otherwise it is a boundary cell with its
    majority label. From each image `cells` cells are drawn: 10 % boundary cells, the rest half per class where there
    are enough. Cells that touch the padding are left out.

    Args:
        embeddings: (B, C, h, w) of the image encoder, after the neck.
        generator: a CPU generator; the same state draws the same cells.

    Returns:
        A scalar in fp32, or None where no two drawn cells share a class.
    """
    side = batch.masks.shape[-1] // embeddings.shape[-1]
    share = F.avg_pool2d(batch.masks.float(), side).flatten(1).cpu()  # (B, h*w)
    inside = F.avg_pool2d(batch.valid().float(), side).flatten(1).cpu() > 1 - 1e-6
    features, labels = [], []
    for item in range(len(batch)):
        drawn = _draw_cells(share[item], inside[item], cells, generator)
        features.append(embeddings[item].flatten(1).T[drawn.to(embeddings.device)])
        labels.append(share[item][drawn] >= 0.5)
    return supervised_contrastive(torch.cat(features), torch.cat(labels).to(embeddings.device), temperature=temperature)


def _draw_cells(share: Tensor, inside: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Draws cell numbers: boundary cells first, then half per class, then whatever is left to fill up."""
    order = torch.randperm(len(share), generator=generator)
    order = order[inside[order]]
    foreground, pure = share[order] >= 0.5, (share[order] >= 0.8) | (share[order] <= 0.2)
    boundary = order[~pure][: round(cells * 0.1)]
    half = (cells - len(boundary)) // 2
    taken = torch.cat([boundary, order[pure & foreground][:half], order[pure & ~foreground][:half]])
    rest = order[pure & ~torch.isin(order, taken)]  # boundary cells stay at their share
    return torch.cat([taken, rest[: cells - len(taken)]])
