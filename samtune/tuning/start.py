"""The pull to the start point: GRFT's regulariser (GRFT, eq. 8; L1 is the ablation of its Tab. 5)."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.tuning.hooks import added_modules

Penalty = Callable[[], Tensor]


def start_penalty(
    model: Backbone,
    trainable: Mapping[str, nn.Parameter],
    *,
    weight: float,
    norm: Literal["l2", "l1"] = "l2",
    blocks: int | None = None,
) -> Penalty:
    """Returns `lambda * sum over R of ||w - w0||^2` (or of absolute values) as a function of the current values.

    Entries that don't train stay at their start, so the sum over what trains is the sum over whole layers. For a new
    head w0 is its initial value.

    Args:
        trainable: what `attach` returned, with the values to be pulled to.
        weight: lambda >= 0.
        blocks: R is the last L blocks, the patch embedding and the head or decoder; None: everything.

    Raises:
        ConfigError: L larger than the number of blocks, or added modules, which have no pretrained value.
    """
    if added := [name for name, _ in added_modules(model)]:
        raise ConfigError(
            f"tune.start pulls to pretrained values, but {added[0]} is added and has none. "
            "Set tune.start.weight=0, or choose a selector that adds nothing, such as grft."
        )
    names, depth, roles = set(trainable), len(model.block_modules()), model.roles()
    if blocks is not None:
        check_start(model, blocks)
        wanted = {model.stem_part(), *(f"block {index}" for index in range(depth - blocks, depth))}
        names &= {n for n, part in model.parts().items() if part in wanted or roles[n] in ("head", "decoder")}
    pairs = [(trainable[name], trainable[name].detach().clone()) for name in sorted(names)]

    def penalty() -> Tensor:
        differences = [parameter - start for parameter, start in pairs]
        amounts = [d.square().sum() if norm == "l2" else d.abs().sum() for d in differences]
        return weight * torch.stack(amounts).sum() if amounts else torch.zeros((), requires_grad=True)

    return penalty


def check_start(model: Backbone, blocks: int | None) -> None:
    """Refuses an L that does not fit the model.

    Raises:
        ConfigError: L larger than the number of blocks.
    """
    depth = len(model.block_modules())
    if blocks is not None and blocks > depth:
        raise ConfigError(f"tune.start.blocks is {blocks}, but {model.name} has {depth} blocks: that is the largest L.")
