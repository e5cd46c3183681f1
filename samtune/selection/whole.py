"""Selections that need no scores: whole tensors by their role."""

from __future__ import annotations

from collections.abc import Iterable

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection.selection import Selection
from samtune.types import Scores


def linear(model: Backbone, scores: Scores | None) -> Selection:
    """Selects nothing of the backbone: only the decoder or head trains ("linear probing")."""
    return Selection({})


def full(model: Backbone, scores: Scores | None) -> Selection:
    """Selects every weight, norm and position table of the backbone; biases and decoder are added as for any method."""
    return _whole(n for n, role in model.roles().items() if role in ("linear", "conv", "norm", "position"))


def bias(model: Backbone, scores: Scores | None) -> Selection:
    """Selects all biases, with the shifts of norms and layer scales (BitFit, arXiv:2106.10199)."""
    roles = model.roles().items()
    return _whole(n for n, role in roles if role == "bias" or (role == "norm" and n.endswith(".bias")))


def partial(model: Backbone, scores: Scores | None, *, blocks: int = 1) -> Selection:
    """Selects the last blocks whole ("Partial-k"); what follows them, such as the final norm or a neck, stays frozen.

    Raises:
        ConfigError: more blocks than the model has.
    """
    modules = model.block_modules()
    if blocks > len(modules):
        raise ConfigError(
            f"select.blocks is {blocks}, but {model.name} has {len(modules)} blocks: that is the largest."
        )
    prefixes = tuple(f"{module}." for module in modules[-blocks:])
    return _whole(name for name, _ in model.net.named_parameters() if name.startswith(prefixes))


def _whole(names: Iterable[str]) -> Selection:
    return Selection({}, tuple(sorted(names)))
