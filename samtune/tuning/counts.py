"""How many parameters a selection trains, by kind and by part of the network."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from torch import nn

from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition, Selection
from samtune.tuning.added import build_added
from samtune.tuning.compact import CompactModule
from samtune.tuning.hooks import added_modules


@dataclass(frozen=True)
class Counts:
    """Trainable parameters, each counted on one line.

    Attributes:
        selected: chosen entries, and whole linear, conv or position tensors, of the encoder.
        bias: biases of the encoder's linear and conv layers, and the shifts of the neck's norms.
        norm: other norm parameters.
        decoder: mask decoder and no-mask embedding.
        added: parameters the base does not have.
        percent: the total, of all parameters of the base.
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


def count(model: Backbone, selection: Selection) -> Counts:
    """Counts what a selection trains, by kind."""
    parameters, roles = _base_parameters(model), model.roles()
    lines = dict.fromkeys(("selected", "bias", "norm", "decoder", "head"), 0)
    for name, amount in _trained(parameters, selection):
        lines[roles[name] if roles[name] in lines else "selected"] += amount
    added = sum(added_count(model, addition) for addition in selection.additions)
    total = sum(lines.values()) + added
    percent = 100 * total / sum(parameter.numel() for parameter in parameters.values())
    return Counts(**lines, added=added, total=total, percent=percent)


def count_by_block(model: Backbone, selection: Selection) -> list[tuple[str, str, int]]:
    """Counts what trains per block and kind: rows of (block, role or `added`, parameters), in the model's order."""
    parameters, roles, blocks = _base_parameters(model), model.roles(), model.parts()
    totals: Counter[tuple[str, str]] = Counter()
    for name, amount in _trained(parameters, selection):
        totals[blocks[name], roles[name]] += amount
    for addition in selection.additions:
        totals[part_of(addition, blocks), "added"] += added_count(model, addition)
    order = list(dict.fromkeys(blocks[name] for name in parameters))
    rows = [(block, role, amount) for (block, role), amount in totals.items()]
    return sorted(rows, key=lambda row: order.index(row[0]))


def added_count(model: Backbone, addition: Addition) -> int:
    """Returns the number of parameters of an addition."""
    return sum(parameter.numel() for parameter in build_added(model, addition).parameters())


def part_of(addition: Addition, parts: Mapping[str, str]) -> str:
    """Returns the part of the network, of `model.parts()`, that the host of an addition belongs to."""
    return next(label for name, label in parts.items() if name.startswith(addition.module + "."))


def _trained(parameters: Mapping[str, nn.Parameter], selection: Selection) -> Iterator[tuple[str, int]]:
    """Yields the base's tensors that train, in part or whole, with how much of them does; in the model's order."""
    for name, parameter in parameters.items():
        if name in selection.entries:
            yield name, len(selection.entries[name])
        elif name in selection.whole:
            yield name, parameter.numel()


def _base_parameters(model: Backbone) -> dict[str, nn.Parameter]:
    """Returns the base's parameters by name, each once, without what tuning put beside them."""
    beside = {id(p) for _, added in added_modules(model) for p in added.parameters()}
    beside |= {id(module.values()) for module in model.modules() if isinstance(module, CompactModule)}
    return {name: p for name, p in model.net.named_parameters() if id(p) not in beside}
