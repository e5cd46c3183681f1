"""The selections that the contracts are checked on: one of every selector there is, and one of none."""

from __future__ import annotations

import torch

from samtune.models import SamModel
from samtune.selection import SELECTORS, Selection, select
from samtune.types import Scores

SCATTERED = "scattered"
"""A selection of no selector: uneven rows, and every kind of tensor that can be tuned."""

# Beside these, every selector runs with its defaults: a new row of the table is checked without further work.
EXTRA = {"gps-5": {"name": "gps", "per_neuron": 5}, "gps-encoder": {"name": "gps", "decoder": False, "biases": False}}
CASES = [*SELECTORS, *EXTRA, SCATTERED]


def make_selection(case: str, model: SamModel) -> Selection:
    """Returns the selection of a case."""
    if case == SCATTERED:
        return scattered(model)
    generator = torch.Generator().manual_seed(0)
    sums = {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    return select(model, Scores(sums, 1, 0, "hash"), **EXTRA.get(case, {"name": case}))


def scattered(model: SamModel) -> Selection:
    """Returns random entries of one tensor of each module that has any, and some tensors whole."""
    generator = torch.Generator().manual_seed(0)
    turn = {"weight": 0.1, "rel_pos_w": 0.3, "pos_embed": 0.2}
    entries = {}
    for name, role in model.roles().items():
        short = name.rpartition(".")[2]
        if role != "fixed" and name.startswith("image_encoder.") and short in turn:
            size = model.get_parameter(name).numel()
            entries[name] = torch.randperm(size, generator=generator)[: max(1, int(turn[short] * size))].sort().values
    block = "image_encoder.blocks.0.mlp"
    entries[f"{block}.lin1.weight"] = torch.arange(3 * 32, 5 * 32)  # two whole rows
    entries[f"{block}.lin2.weight"] = torch.arange(32) * 128 + 7  # one whole column
    entries["mask_decoder.output_upscaling.0.weight"] = torch.tensor([0, 5, 300])  # a transposed convolution
    return Selection(entries, ("image_encoder.neck.3.bias", "prompt_encoder.no_mask_embed.weight"))
