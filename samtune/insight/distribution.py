"""What a selection looks like: where its entries lie, and what it shares with another one.

Tensors that train whole are a decision of the method, not of the scores: they are left out, and said. Weights
here are the linear and conv weights outside of head and decoder, and any other tensor with chosen entries.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition, Selection, check_selection
from samtune.tuning.counts import added_count, part_of

View = Literal["part", "operation"]


class Summed:
    """Base of numbers of one place: those of several places add up one by one."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Amount(Summed):
    """What trains in one place: chosen ones of all entries of the weights there, and parameters of additions."""

    chosen: int = 0
    added: int = 0
    entries: int = 0

    @property
    def trained(self) -> int:
        """Chosen entries and added parameters."""
        return self.chosen + self.added


@dataclass(frozen=True)
class Distribution:
    """Where a selection lies.

    Attributes:
        cells: (part of the network, operation) -> amount, in the model's order.
        whole: parameters of tensors that train whole; in no cell.
    """

    cells: dict[tuple[str, str], Amount]
    whole: int

    @property
    def total(self) -> Amount:
        """The sum of all cells."""
        return sum(self.cells.values(), Amount())

    def by(self, view: View) -> dict[str, Amount]:
        """Returns the amounts of each part (SPT, Fig. 4 top; GPS, Fig. 9), or operation (SPT, Fig. 4 bottom)."""
        totals: defaultdict[str, Amount] = defaultdict(Amount)
        for (part, operation), amount in self.cells.items():
            totals[part if view == "part" else operation] += amount
        return dict(totals)

    def share(self, amount: Amount) -> float:
        """Returns the share of the selection that an amount is; 0 for an empty selection."""
        return amount.trained / total if (total := self.total.trained) else 0.0


def distribution(model: Backbone, selection: Selection) -> Distribution:
    """Counts chosen entries and added parameters per part of the network and per operation.

    Operations are q, k, v, proj, fc1, fc2 (linear layers of the blocks; qkv is three), conv, and other. An addition
    counts for the operation of its host; on a whole sublayer, as `attention` or `mlp`; on all of a qkv, as `qkv`.

    Raises:
        CheckpointError: the selection is another model's.
    """
    check_selection(selection, model)
    parts, labels = model.parts(), _operations(model)
    cells: defaultdict[tuple[str, str], Amount] = defaultdict(Amount)
    for name, parameter in weights_of(model, selection).items():
        operations = labels.get(name, ("other",))
        size = parameter.numel() // len(operations)
        chosen = torch.bincount(_entries(selection, name) // size, minlength=len(operations))  # equal blocks of rows
        for operation, amount in zip(operations, chosen.tolist(), strict=True):
            cells[parts[name], operation] += Amount(amount, 0, size)
    for addition in selection.additions:
        place = part_of(addition, parts), _operation_of(addition, model, labels)
        cells[place] += Amount(added=added_count(model, addition))
    return Distribution(dict(cells), sum(model.net.get_parameter(name).numel() for name in selection.whole))


@dataclass(frozen=True)
class Shared(Summed):
    """What two selections have in common, in one place.

    Attributes:
        first, second, both: entries that one, the other, and both chose.
        expected: how many both would choose on average if each chose as many in every row, at random.
    """

    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B|; NaN where neither chose anything."""
        return ratio(self.both, self.first + self.second - self.both)

    @property
    def expected_jaccard(self) -> float:
        """The Jaccard index when `expected` entries are shared; NaN where neither chose anything."""
        return ratio(self.expected, self.first + self.second - self.expected)


@dataclass(frozen=True)
class Overlap:
    """What two selections of one model share (GPS, Fig. 12).

    Attributes:
        parts: part of the network -> what is shared there, in the model's order.
        left_out: tensors that train whole in one selection and in part in the other; in no part.
    """

    parts: dict[str, Shared]
    left_out: tuple[str, ...] = ()

    @property
    def total(self) -> Shared:
        """The sum of all parts."""
        return sum(self.parts.values(), Shared())


def overlap(model: Backbone, first: Selection, second: Selection) -> Overlap:
    """Compares the chosen entries of two selections by position, without tensors that train whole in either.

    Two random selections with a_r and b_r entries in a row of d inputs share a_r * b_r / d of them on average (the
    mean of the hypergeometric distribution); a vector or a position table is one row.

    Raises:
        CheckpointError: a selection is another model's.
    """
    for selection in (first, second):
        check_selection(selection, model)
    whole, labels = {*first.whole, *second.whole}, model.parts()
    parts: defaultdict[str, Shared] = defaultdict(Shared)
    for name, parameter in weights_of(model, first, second).items():
        parts[labels[name]] += Shared() if name in whole else _shared(first, second, name, parameter.shape)
    left_out = sorted(whole & {*first.entries, *second.entries})
    return Overlap(dict(parts), tuple(left_out))


def weights_of(model: Backbone, *selections: Selection) -> dict[str, Tensor]:
    """Returns the tensors that can be chosen from, or are, in the model's order."""
    chosen = {name for selection in selections for name in selection.entries}
    roles = model.roles()
    return {n: p for n, p in model.net.named_parameters() if roles[n] in ("linear", "conv") or n in chosen}


def _operations(model: Backbone) -> dict[str, tuple[str, ...]]:
    """Returns weight -> the operations of its equal groups of rows."""
    found: dict[str, tuple[str, ...]] = {name: ("conv",) for name, role in model.roles().items() if role == "conv"}
    found |= {f"{module}.weight": (target,) for target, modules in model.linears().items() for module in modules}
    return found | dict.fromkeys(model.fused(), ("q", "k", "v"))


def _entries(selection: Selection, name: str) -> Tensor:
    """Returns the flat indices that are chosen of a tensor, (n,) int64; n may be 0."""
    return selection.entries.get(name, torch.empty(0, dtype=torch.int64))


def _shared(first: Selection, second: Selection, name: str, shape: torch.Size) -> Shared:
    rows = shape[0] if len(shape) > 1 else 1
    columns = shape.numel() // rows
    a, b = _entries(first, name), _entries(second, name)
    in_rows = [torch.bincount(indices // columns, minlength=rows).double() for indices in (a, b)]
    expected = float(in_rows[0] @ in_rows[1]) / columns
    return Shared(len(a), len(b), int(torch.isin(a, b).sum()), expected)


def _operation_of(addition: Addition, model: Backbone, labels: Mapping[str, tuple[str, ...]]) -> str:
    for kind, modules in model.sublayers().items():
        if addition.module in modules:
            return kind
    operations = labels.get(f"{addition.module}.weight", ("other",))
    if len(operations) == 1:
        return operations[0]
    if addition.rows is None:
        return "qkv"
    rows = len(model.net.get_submodule(addition.module).weight)  # type: ignore[arg-type]
    return operations[addition.rows[0] * len(operations) // rows]


def ratio(part: float, whole: float) -> float:
    """Returns part / whole; NaN for an empty whole."""
    return part / whole if whole else float("nan")
