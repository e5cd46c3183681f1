"""The `Selection`: which entries of which tensors train, and what trains beside them. Data, not code.

On disk it is one safetensors file. A tensor with the same number of entries in every row keeps only its column
numbers, shape (rows, K); any other keeps flat indices. Both use the smallest integer type that fits and are widened
on load. Tensors that train whole, and additions, are listed by name, with the provenance, in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from samtune.base.tensors import load_tensors, read_metadata, save_tensors
from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone

FORMAT = "samtune-selection-2"
OLD_FORMAT = "samtune-selection-1"
_INDICES = (torch.uint8, torch.uint16, torch.int32, torch.int64)  # what `pack_indices` writes

# Kinds of additions that end as new values of their host's own tensors; any other kind stays beside the model.
FOLDS = {"lora": ("weight",), "dora": ("weight",), "pissa": ("weight",), "ssf": ("weight", "bias")}


@dataclass(frozen=True)
class Addition:
    """A small module that trains beside a module of the base, its host.

    Attributes:
        kind: key of `samtune.tuning.added.KINDS`.
        module: name of the host.
        rows: (start, stop) of the host's output channels that it acts on; None for all. A fused qkv has three parts.
        options: numbers that the kind needs, such as `rank`.
    """

    kind: str
    module: str
    rows: tuple[int, int] | None = None
    options: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """The attribute of the host that holds it."""
        return self.kind if self.rows is None else f"{self.kind}_{self.rows[0]}"

    @property
    def name(self) -> str:
        """Prefix of its parameters' names."""
        return f"{self.module}.{self.short}"

    @property
    def merges(self) -> bool:
        """Whether it ends as new values of its host's tensors."""
        return self.kind in FOLDS


@dataclass(frozen=True)
class Selection:
    """Entries to train.

    Attributes:
        entries: tensor name -> sorted, unique int64 indices into the flattened tensor.
        whole: names of tensors that train completely.
        additions: modules that train beside the base.
        provenance: method, options, seed, loss, base hash, hash of the scoring images.
    """

    entries: dict[str, Tensor]
    whole: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    additions: tuple[Addition, ...] = ()

    @property
    def merges(self) -> bool:
        """Whether the tuned model is an ordinary one: every addition folds into its host."""
        return all(addition.merges for addition in self.additions)

    def names(self) -> list[str]:
        """Returns the names of the base's tensors that train, in part or whole."""
        return sorted({*self.entries, *self.whole})

    def changes(self, shapes: Mapping[str, Collection[int]]) -> dict[str, Tensor | None]:
        """Returns which tensors of a base of these shapes may differ after merging: flat indices, or None for all."""
        hosts = [f"{a.module}.{short}" for a in self.additions for short in FOLDS.get(a.kind, ())]
        folded = [name for name in hosts if name in shapes]
        return {**self.entries, **dict.fromkeys(self.whole), **dict.fromkeys(folded)}

    def add_whole(self, names: list[str]) -> Selection:
        """Returns a selection that also trains these tensors whole."""
        whole = tuple(sorted({*self.whole, *names}))
        return replace(self, entries={n: i for n, i in self.entries.items() if n not in whole}, whole=whole)

    def add_entries(self, more: Mapping[str, Tensor]) -> Selection:
        """Returns a selection that also trains these flat indices, of tensors that do not train whole."""
        entries = dict(self.entries)
        for name, indices in more.items():
            if name not in self.whole:
                entries[name] = torch.unique(torch.cat([entries.get(name, indices[:0]), indices]))
        return replace(self, entries=entries)


_ADDITIONS = TypeAdapter(tuple[Addition, ...])
_WHOLE, _SHAPES = TypeAdapter(tuple[str, ...]), TypeAdapter(dict[str, tuple[int, ...]])


def check_selection(selection: Selection, model: Backbone) -> None:
    """Refuses a selection that does not fit a model.

    Raises:
        CheckpointError: naming the unknown tensor, the index out of range, or the tensor that must stay fixed.
    """
    roles = model.roles()
    shapes = {name: p.numel() for name, p in model.net.named_parameters()}
    for name in selection.names():
        if name not in shapes:
            raise CheckpointError(f"the selection tunes {name!r}, which this model does not have: another model's?")
        if roles[name] == "fixed":
            raise CheckpointError(f"the selection tunes {name!r}, which is fixed in this model.")
    modules = dict(model.net.named_modules())
    for host in [addition.module for addition in selection.additions]:
        if host not in modules:
            raise CheckpointError(f"the selection adds to {host!r}, which this model does not have: another model's?")
    for name, indices in selection.entries.items():
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= shapes[name]):
            raise CheckpointError(f"the selection points outside of {name!r} ({shapes[name]} entries).")


def save_selection(selection: Selection, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes a selection file; `shapes` has those of every tensor in `selection.entries`."""
    packed = {name: pack_indices(indices, shapes[name]) for name, indices in selection.entries.items()}
    metadata = {"format": FORMAT, "whole": json.dumps(selection.whole), **selection.provenance}
    metadata["additions"] = _ADDITIONS.dump_json(selection.additions).decode()
    metadata["shapes"] = json.dumps({name: list(shapes[name]) for name in selection.entries})
    save_tensors(path, {f"{kind}/{name}": tensor for name, (kind, tensor) in packed.items()}, metadata)


def load_selection(path: Path) -> Selection:
    """Reads a selection file.

    Raises:
        CheckpointError: missing, damaged, of an older version, or no selection file.
    """
    metadata = read_metadata(path)
    found = metadata.pop("format", None)
    if found == OLD_FORMAT:
        raise CheckpointError(f"{path} is of an older version ({found}, now {FORMAT}) and must be selected again.")
    if found != FORMAT:
        raise CheckpointError(f"{path} is no selection file ({FORMAT}).")
    tensors = load_tensors(path)
    try:
        whole = _WHOLE.validate_json(metadata.pop("whole"), strict=True)
        shapes = _SHAPES.validate_json(metadata.pop("shapes"), strict=True)
        additions = _ADDITIONS.validate_json(metadata.pop("additions"), strict=True)
        unpacked = {}
        for key, packed in tensors.items():
            kind, name = key.split("/", 1)
            unpacked[name] = unpack_indices(kind, packed, shapes[name])
        entries = {name: unpacked[name] for name in shapes}  # in the order of the choice: norms are rounded by it
    except (LookupError, ValueError, RuntimeError) as err:  # RuntimeError: shapes that don't fit the indices
        raise CheckpointError(f"{path} has missing or damaged metadata ({_reason(err)}). Select again.") from err
    return Selection(entries, whole, metadata, additions)


def _reason(err: Exception) -> str:
    if not isinstance(err, ValidationError):
        return repr(err)
    first = err.errors(include_url=False)[0]
    return ": ".join([*(str(part) for part in first["loc"]), first["msg"]])


def pack_indices(indices: Tensor, shape: tuple[int, ...]) -> tuple[str, Tensor]:
    """Packs flat indices: ("columns", (rows, K)) where every row has K of them, else ("flat", (n,))."""
    rows = shape[0]
    columns = max(1, torch.Size(shape).numel() // rows)
    per_row = torch.bincount(indices // columns, minlength=rows)
    if len(indices) and bool((per_row == per_row[0]).all()):
        return "columns", _narrow((indices % columns).reshape(rows, -1))
    return "flat", _narrow(indices)


def unpack_indices(kind: str, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns the sorted int64 flat indices that `pack_indices` packed; a ValueError of a type that it never writes."""
    if packed.dtype not in _INDICES:
        raise ValueError(f"indices of {packed.dtype}")
    wide = packed.to(torch.int64)
    if kind == "flat":
        return wide
    columns = max(1, torch.Size(shape).numel() // shape[0])
    return (torch.arange(shape[0])[:, None] * columns + wide).reshape(-1)


def _narrow(indices: Tensor) -> Tensor:
    """Returns the indices in the smallest unsigned type that holds them."""
    largest = int(indices.max()) if len(indices) else 0
    types = (torch.uint8, torch.uint16, torch.int32)
    return next((indices.to(dtype) for dtype in types if largest <= torch.iinfo(dtype).max), indices)
