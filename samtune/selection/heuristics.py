"""Selections that need no scores: the ends of the scale."""

from __future__ import annotations

from samtune.models.sam import SamModel
from samtune.selection.selection import Selection
from samtune.types import Scores


def linear(model: SamModel, scores: Scores | None) -> Selection:
    """Selects nothing of the encoder: only the decoder trains ("linear probing" of SAM)."""
    return Selection({})


def full(model: SamModel, scores: Scores | None) -> Selection:
    """Selects every weight, norm and position table of the encoder; biases and decoder are added as for any method."""
    wanted = ("linear", "conv", "norm", "position")
    return Selection({}, tuple(sorted(name for name, role in model.roles().items() if role in wanted)))
