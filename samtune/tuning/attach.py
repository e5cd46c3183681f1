"""Attach a selection to a model, merge it back, and count what trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from samtune.errors import CheckpointError
from samtune.models.sam import SamModel
from samtune.selection.selection import Selection, check_selection
from samtune.tuning.compact import CompactModule, release_entries, tune_entries
from samtune.types import Role


@dataclass(frozen=True)
class Counts:
    """Trainable parameters, each counted on one line.

    Attributes:
        selected: chosen entries, and whole linear, conv or position tensors, of the encoder.
        bias: biases of the encoder's linear and conv layers, and the shifts of the neck's norms.
        norm: other norm parameters.
        decoder: mask decoder and no-mask embedding.
        head: a classification head.
        added: parameters the base does not have.
        total: the sum.
        percent: total, of all parameters of the model.
    """

    selected: int
    bias: int
    norm: int
    decoder: int
    head: int
    added: int
    total: int
    percent: float

    def to_json(self) -> dict[str, float]:
        """Returns the counts by name, as in `metrics.json`."""
        return asdict(self)


_LINES: dict[Role, str] = {"bias": "bias", "norm": "norm", "decoder": "decoder", "head": "head"}


def attach(model: SamModel, selection: Selection) -> dict[str, nn.Parameter]:
    """Freezes the model except for what the selection names.

    Args:
        model: plain; afterwards its state dict still has the stock keys, with current values.
        selection: of this model.

    Returns:
        name of the stock tensor -> what an optimizer trains: the whole parameter, or its (n,) chosen values.

    Raises:
        CheckpointError: a selection of another model, one with entries in two tensors of one module, or a model
            that is attached already.
    """
    if any(isinstance(module, CompactModule) for module in model.modules()):
        raise CheckpointError("the model has a selection attached already; merge it first.")
    check_selection(selection, model, model.roles())
    owners = [name.rpartition(".")[0] for name in selection.entries]
    doubled = sorted({owner for owner in owners if owners.count(owner) > 1})
    if doubled:
        raise CheckpointError(
            f"the selection has entries in two tensors of {doubled[0]}; select one of them whole instead."
        )
    model.requires_grad_(False)
    trainable: dict[str, nn.Parameter] = {}
    for name, indices in selection.entries.items():
        owner, _, short = name.rpartition(".")
        trainable[name] = tune_entries(model.get_submodule(owner), short, indices)
    for name in selection.whole:
        trainable[name] = model.get_parameter(name)
        trainable[name].requires_grad_(True)
    return trainable


def merge(model: SamModel) -> SamModel:
    """Turns an attached model back into a plain one with the tuned weights, in place; merging twice changes nothing."""
    for module in list(model.modules()):
        if isinstance(module, CompactModule):
            release_entries(module)
    return model.requires_grad_(False)


def count(model: SamModel, selection: Selection) -> Counts:
    """Counts what a selection trains, by kind.

    Args:
        model: plain or attached.
        selection: of this model.
    """
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    lines = dict.fromkeys(("selected", "bias", "norm", "decoder", "head"), 0)
    roles = model.roles()
    for name in selection.names():
        amount = len(selection.entries[name]) if name in selection.entries else sizes[name]
        lines[_LINES.get(roles[name], "selected")] += amount
    total = sum(lines.values())
    parameters = sum(sizes[name] for name in roles if name in sizes)
    return Counts(**lines, added=0, total=total, percent=100 * total / parameters)


def count_by_block(model: SamModel, selection: Selection) -> list[tuple[str, str, int]]:
    """Counts what trains per block and kind: rows of (block, role, parameters), in the model's order."""
    sizes: Mapping[str, Tensor] = model.state_dict()
    roles, blocks = model.roles(), model.parts()
    totals: dict[tuple[str, str], int] = {}
    for name in (n for n in sizes if n in selection.entries or n in selection.whole):
        amount = len(selection.entries[name]) if name in selection.entries else sizes[name].numel()
        key = (blocks[name], roles[name])
        totals[key] = totals.get(key, 0) + amount
    return [(block, role, amount) for (block, role), amount in totals.items()]
