"""How many parameters a selection trains, by kind and by part of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition, Selection
from samtune.tuning.added import build_added
from samtune.tuning.compact import CompactModule
from samtune.tuning.hooks import added_modules
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
        percent: total, of all parameters of the base.
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


def count(model: Backbone, selection: Selection) -> Counts:
    """Counts what a selection trains, by kind."""
    sizes = {name: parameter.numel() for name, parameter in _base_parameters(model).items()}
    lines = dict.fromkeys(("selected", "bias", "norm", "decoder", "head"), 0)
    roles = model.roles()
    for name in selection.names():
        amount = len(selection.entries[name]) if name in selection.entries else sizes[name]
        lines[_LINES.get(roles[name], "selected")] += amount
    added = sum(_size(model, addition) for addition in selection.additions)
    total = sum(lines.values()) + added
    return Counts(**lines, added=added, total=total, percent=100 * total / sum(sizes.values()))


def count_by_block(model: Backbone, selection: Selection) -> list[tuple[str, str, int]]:
    """Counts what trains per block and kind: rows of (block, role or `added`, parameters), in the model's order."""
    parameters = _base_parameters(model)
    roles, blocks = model.roles(), model.parts()
    totals: dict[tuple[str, str], int] = {}
    for name in (n for n in parameters if n in selection.entries or n in selection.whole):
        amount = len(selection.entries[name]) if name in selection.entries else parameters[name].numel()
        key: tuple[str, str] = (blocks[name], roles[name])
        totals[key] = totals.get(key, 0) + amount
    for addition in selection.additions:
        of_host = next(name for name in parameters if name.startswith(addition.module + "."))
        key = (blocks[of_host], "added")
        totals[key] = totals.get(key, 0) + _size(model, addition)
    order = list(dict.fromkeys(blocks[name] for name in parameters))
    rows = [(block, role, amount) for (block, role), amount in totals.items()]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _size(model: Backbone, addition: Addition) -> int:
    return sum(parameter.numel() for parameter in build_added(model, addition).parameters())


def _base_parameters(model: Backbone) -> dict[str, nn.Parameter]:
    """Returns the base's parameters by name, each once, without what tuning put beside them."""
    beside = {id(p) for _, added in added_modules(model) for p in added.parameters()}
    beside |= {id(module.values()) for module in model.modules() if isinstance(module, CompactModule)}
    return {name: p for name, p in model.net.named_parameters() if id(p) not in beside}
