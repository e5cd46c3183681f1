"""Contrastive losses: what scoring differentiates, all in fp32.

`supervised_contrastive` is eq. 2 of GPS (Zhang et al., CVPR 2024), after Khosla et al., arXiv:2004.11362.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from samtune.types import IGNORE, Batch


@runtime_checkable
class Drawing(Protocol):
    """A loss that draws at random, image after image."""

    def skip(self, images: int) -> None:
        """Passes over the draws of images that come next in the pass, but not to this loss."""


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
    """Supervised contrastive loss over cells of the image embedding, labelled by the masks or maps of classes.

    A cell is pure where at least 80 % of its pixels are of one class, otherwise it is a boundary cell; its label is the
    class of most of its pixels, the higher one of equals. From each image `cells` cells are drawn: 10 % boundary cells,
    the rest in equal parts of each class that the image shows, where there are enough. Cells that touch the padding are
    left out, and those of which most does not count.

    Args:
        embeddings: (B, C, h, w) of the image encoder, after the neck.
        generator: a CPU generator; the same state draws the same cells.

    Returns:
        A scalar in fp32, or None where no two drawn cells share a class.
    """
    side = batch.masks.shape[-1] // embeddings.shape[-1]
    inside = F.avg_pool2d(batch.valid().float(), side).flatten(1).cpu() > 1 - 1e-6  # (B, h*w)
    features, labels = [], []
    for item in range(len(batch)):
        label, share = _cells(batch.masks[item], side)
        order = draw_order(embeddings, generator)
        drawn = _draw_cells(label, share, order[(inside[item] & (label != IGNORE))[order]], cells)
        features.append(embeddings[item].flatten(1).T[drawn.to(embeddings.device)])
        labels.append(label[drawn])
    return supervised_contrastive(torch.cat(features), torch.cat(labels).to(embeddings.device), temperature=temperature)


def draw_order(embeddings: Tensor, generator: torch.Generator) -> Tensor:
    """Draws the order of the cells of an image of (B, C, h, w) embeddings: each image of a pass takes one draw."""
    return torch.randperm(embeddings[0, 0].numel(), generator=generator)


def _cells(target: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns of each cell of (1, S, S) its label, (h*w,) int64, and the share of its pixels that have it."""
    values = target.to(torch.uint8)
    present = torch.unique(values).flip(0)  # the first of equals wins: of foreground and background, the foreground
    shares = F.avg_pool2d((values == present[:, None, None]).float(), side).flatten(1).cpu()  # (classes, h*w)
    share, place = shares.max(dim=0)
    return present.cpu().long()[place], share


def _draw_cells(label: Tensor, share: Tensor, order: Tensor, cells: int) -> Tensor:
    """Draws cells in order: boundary cells first, then equal parts per class, then whatever is left to fill up."""
    pure, kinds = share[order] >= 0.8, label[order]
    boundary = order[~pure][: round(cells * 0.1)]
    present = torch.unique(kinds[pure]).flip(0).tolist()
    part = (cells - len(boundary)) // max(1, len(present))
    taken = torch.cat([boundary, *(order[pure & (kinds == kind)][:part] for kind in present)])
    rest = order[pure & ~torch.isin(order, taken)]  # boundary cells stay at their share
    return torch.cat([taken, rest[: cells - len(taken)]])
