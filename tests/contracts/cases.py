"""The selections that the contracts of compact tuning are checked on: of every selector that adds no module.

`test_methods` checks all of them, on all families of models.
"""

from __future__ import annotations

import torch
from toy import toy_model

from samtune.errors import ConfigError
from samtune.models.sam.model import SamModel
from samtune.selection import SELECTORS, Selection, select
from samtune.types import Scores

SCATTERED = "scattered"
"""A selection of no selector: uneven rows, and every kind of tensor that can be tuned."""

# Beside these, every selector runs with its defaults: a new row of the table is checked without further work.
EXTRA = {
    "gps-5": {"name": "gps", "per_neuron": 5},
    "gps-net": {"name": "gps", "level": "net"},
    "gps-encoder": {"name": "gps", "decoder": False, "biases": False},
    "grft-columns": {"name": "grft", "pattern": "columns"},
    "spt-unstructured": {"name": "spt", "structure": "none", "tau": 500},
}


def make_selection(case: str, model: SamModel) -> Selection:
    """Returns the selection of a case."""
    if case == SCATTERED:
        return scattered(model)
    options = {"name": case, **EXTRA.get(case, {})}
    generator = torch.Generator().manual_seed(0)
    sums = {name: torch.randn(p.shape, generator=generator) for name, p in model.net.named_parameters()}
    squares = {name: value.square() for name, value in sums.items()}
    per = "sample" if options["name"] == "spt" else "batch"
    return select(model, Scores(sums, 1, 0, "hash", squares, per), **options)


def adds_nothing(case: str) -> bool:
    """Whether a case is defined for a SAM and tunes its own tensors only."""
    try:
        return not make_selection(case, toy_model()).additions
    except ConfigError:
        return False


def scattered(model: SamModel) -> Selection:
    """Returns random entries of one tensor of each module that has any, and some tensors whole."""
    generator = torch.Generator().manual_seed(0)
    turn = {"weight": 0.1, "rel_pos_w": 0.3, "pos_embed": 0.2}
    entries = {}
    for name, role in model.roles().items():
        short = name.rpartition(".")[2]
        if role != "fixed" and name.startswith("image_encoder.") and short in turn:
            size = model.net.get_parameter(name).numel()
            entries[name] = torch.randperm(size, generator=generator)[: max(1, int(turn[short] * size))].sort().values
    block = "image_encoder.blocks.0.mlp"
    entries[f"{block}.lin1.weight"] = torch.arange(3 * 32, 5 * 32)  # two whole rows
    entries[f"{block}.lin2.weight"] = torch.arange(32) * 128 + 7  # one whole column
    entries["mask_decoder.output_upscaling.0.weight"] = torch.tensor([0, 5, 300])  # a transposed convolution
    return Selection(entries, ("image_encoder.neck.3.bias", "prompt_encoder.no_mask_embed.weight"))


CASES = [case for case in (*SELECTORS, *EXTRA, SCATTERED) if adds_nothing(case)]
