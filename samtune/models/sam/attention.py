"""Attention with decomposed relative positions, exact, in memory linear in the number of tokens.

Segment Anything adds `q.Rh[row(k)] + q.Rw[column(k)]` to the attention logits (decomposed relative positions of
MViTv2, arXiv:2112.01526, eq. 4) and materialises the (N, N) table for it: 805 MB for each global layer and image at
1024 px. The same sum is one inner product of longer vectors,

    q' = [q * scale, q.Rh, q.Rw],   k' = [k, onehot(row), onehot(column)],   v' = [v, 0],

so the fused `scaled_dot_product_attention` kernels compute it without the table. The parameters keep the names and
shapes of `segment_anything.modeling.image_encoder.Attention`.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Multi-head attention over an (H, W) grid, with those of `stock` as its parameters; equal to it up to rounding."""

    def __init__(self, stock: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale, self.use_rel_pos = stock.num_heads, stock.scale, stock.use_rel_pos
        self.qkv, self.proj = stock.qkv, stock.proj
        if self.use_rel_pos:
            self.rel_pos_h, self.rel_pos_w = stock.rel_pos_h, stock.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        """Attends over all cells of each grid: (B, H, W, C) to (B, H, W, C)."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, d)
        if self.use_rel_pos:
            rel_h = get_rel_pos(height, height, self.rel_pos_h)  # (H, H, d)
            rel_w = get_rel_pos(width, width, self.rel_pos_w)  # (W, W, d)
            out = attend_with_relative_positions(q, k, v, rel_h, rel_w, scale=self.scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out = out.transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(out)  # type: ignore[no-any-return]


def attend_with_relative_positions(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, scale: float
) -> Tensor:
    """Computes `softmax(scale * q.k + q.Rh + q.Rw) v`, (B, heads, N, d), without an (N, N) tensor.

    Args:
        q, k, v: (B, heads, N, d) with N = H * W, row-major.
        rel_h, rel_w: (H, H, d) and (W, W, d), the embedding of each pair of rows, and of columns.
    """
    batch, heads, tokens, dim = q.shape
    height, width = len(rel_h), len(rel_w)
    grid = q.reshape(batch, heads, height, width, dim)
    on_rows = torch.einsum("bnhwd,hkd->bnhwk", grid, rel_h.to(q.dtype)).flatten(2, 3)  # (B, heads, N, H)
    on_columns = torch.einsum("bnhwd,wkd->bnhwk", grid, rel_w.to(q.dtype)).flatten(2, 3)  # (B, heads, N, W)
    extra = height + width
    padding = -(dim + extra) % 8  # fused kernels want a head size that is a multiple of 8
    cells = torch.arange(tokens, device=q.device)
    hot = torch.cat([F.one_hot(cells // width, height), F.one_hot(cells % width, width)], dim=-1)
    hot = F.pad(hot.to(k.dtype), (0, padding)).expand(batch, heads, -1, -1)
    q_long = F.pad(torch.cat([q * scale, on_rows, on_columns], dim=-1), (0, padding))
    k_long = torch.cat([k, hot], dim=-1)
    v_long = F.pad(v, (0, extra + padding))  # the kernels want one head size for all three
    return F.scaled_dot_product_attention(q_long, k_long, v_long, scale=1.0)[..., :dim]
