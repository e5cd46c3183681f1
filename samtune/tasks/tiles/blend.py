"""What does a model say of every pixel of a large picture? Its answers to tiles, blended, a band of rows at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samtune.data.frames import Collate, resize_longest
from samtune.tasks.pixels import low_logits, to_original
from samtune.tasks.tiles.grid import Floats, starts, weights
from samtune.types import Batch, PixelArray, Sample, Tiles

AT_ONCE = 8  # tiles in one pass of the model

Bands = Iterator[tuple[slice, Floats]]
"""Rows of a picture, from the top on without a gap, and (n, h, W) values of them."""


def blended(model: nn.Module, batch: Batch, autocast_dtype: torch.dtype | None = None) -> Bands:
    """Yields the (n, h, W) float32 logits of a picture, on the CPU; see `weights` for how tiles are blended.

    Only the rows of the tiles that reach beyond a band are kept: the memory does not grow with the height.

    Args:
        model: maps a `Batch` of input frames to (B, n, S/4, S/4) logits; the caller has set evaluation mode.
        batch: one picture, with tiles.
        autocast_dtype: precision of the model's forward pass; None runs it as it is.

    Raises:
        NonFiniteError: the logits of a tile are not finite; the message names the picture and the tile.
    """
    tiles, (height, width) = batch.tiles, batch.sizes_input[0]
    assert tiles is not None
    tops, lefts = starts(height, tiles), starts(width, tiles)
    down, across = weights(tops, height, tiles), weights(lefts, width, tiles)
    unfinished: Any = None  # (n, h, W): what tiles above have said of the rows from the next tile's first on
    for top, end, share in zip(tops, [*tops[1:], height], down, strict=True):
        rows = np.zeros((0,), dtype=np.float32)
        for left, part, logits in _row(model, batch, top, lefts, across, autocast_dtype):
            if not rows.size:
                rows = np.zeros((len(logits), len(share), width), dtype=np.float32)
            rows[:, :, left : left + len(part)] += logits * part * share[:, None]
        if unfinished is not None:
            rows[:, : unfinished.shape[1]] += unfinished
        yield slice(top, end), rows[:, : end - top]
        unfinished = rows[:, end - top :].copy()


def tile_frame(name: str, part: PixelArray, side: int, *, least: int) -> Sample:
    """Returns an (h, w, C) part of a picture, scaled for an input frame, with an empty target.

    Args:
        side: S of the input frame.
        least: pixels of a tile's side, see `resize_longest`.
    """
    small = resize_longest(part, side, least=least)
    values = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
    truth = np.broadcast_to(np.uint8(0), part.shape[:2])
    return Sample(name, values, torch.zeros(small.shape[:2], dtype=torch.uint8), truth)


def _row(
    model: nn.Module, batch: Batch, top: int, lefts: Sequence[int], across: Sequence[Floats], dtype: Any
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yields of each tile of a row its first column, its weights along the row, and its (n, h, w) logits."""
    tiles, device = batch.tiles, batch.images.device
    assert tiles is not None
    for start in range(0, len(lefts), AT_ONCE):
        chosen = range(start, min(start + AT_ONCE, len(lefts)))
        samples = [tile_frame(*_cut(batch, top, lefts[place], tiles), tiles.side, least=tiles.size) for place in chosen]
        frames = Collate(tiles.side)(samples).to(device)
        low = low_logits(model, frames, dtype)
        for place, one, size_input, sample in zip(chosen, low, frames.sizes_input, samples, strict=True):
            maps: list[Tensor] = [to_original(m, tiles.side, size_input, sample.truth.shape) for m in one]
            yield lefts[place], across[place], torch.stack(maps).cpu().numpy()


def _cut(batch: Batch, top: int, left: int, tiles: Tiles) -> tuple[str, PixelArray]:
    part: Any = batch.images[0, :, top : top + tiles.size, left : left + tiles.size].permute(1, 2, 0).cpu().numpy()
    return f"{batch.names[0]} (tile at {left}, {top})", part
