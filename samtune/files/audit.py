"""Is a tuned model true? Everything outside of its selection is bit-equal to its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samtune.errors import CheckpointError
from samtune.files.delta import base_of, bits_of, expect_hash
from samtune.files.description import read_description
from samtune.models.weights import read_state
from samtune.selection.selection import Selection, load_selection


@dataclass(frozen=True)
class AuditReport:
    """Whether nothing outside of the selection changed, and what was compared and found, for people."""

    ok: bool
    lines: tuple[str, ...]


def audit_files(base: str | Path, merged: Path, selection: Path) -> AuditReport:
    """As `audit`, of files; a damaged one, or a selection made for another base, is a `CheckpointError`."""
    chosen = load_selection(selection)
    state = base_of(base, read_description(merged), merged)
    if "base_hash" in chosen.provenance:
        expect_hash(state, chosen.provenance["base_hash"], f"{selection} belongs to another base than {base}")
    return audit(state, read_state(merged), chosen)


def audit(base: Mapping[str, Tensor], merged: Mapping[str, Tensor], selection: Selection) -> AuditReport:
    """Checks that everything outside of a selection is bit-equal in the states of a base and its tuned model.

    Raises:
        CheckpointError: the selection does not fit the base.
    """
    _check_fits(selection, base)
    added = {name for name in merged if name.startswith(tuple(f"{a.name}." for a in selection.additions))}
    if set(base) != set(merged) - added:
        return AuditReport(False, (f"the files have different tensors: {sorted(set(base) ^ set(merged))[:3]}",))
    frozen = tuned = 0
    strays = []
    changes = selection.changes(base)
    for name, tensor in base.items():
        changed = bits_of(tensor) != bits_of(merged[name])
        allowed = torch.zeros_like(changed)
        if name in changes:
            where = changes[name]
            allowed[slice(None) if where is None else where] = True
        frozen += int((~allowed).sum())
        tuned += int((changed & allowed).sum())
        if bool((changed & ~allowed).any()):
            strays.append(f"{name}: {int((changed & ~allowed).sum())} entries changed outside of the selection")
    verdict = f"{frozen:,} unselected entries bit-equal to the base" if not strays else f"{len(strays)} tensors moved"
    allowed_total = sum(t.numel() for t in base.values()) - frozen
    return AuditReport(not strays, (verdict, f"{tuned:,} of {allowed_total:,} selected entries changed", *strays))


def _check_fits(selection: Selection, base: Mapping[str, Tensor]) -> None:
    hosts = {name.rpartition(".")[0] for name in base}
    unknown = [name for name in selection.names() if name not in base]
    unknown += [
        addition.module
        for addition in selection.additions
        if not any(h == addition.module or h.startswith(addition.module + ".") for h in hosts)
    ]
    if unknown:
        raise CheckpointError(f"the selection tunes {unknown[0]!r}, which the base does not have: another model's?")
    for name, indices in selection.entries.items():
        size = base[name].numel()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise CheckpointError(f"the selection points outside of {name!r} ({size} entries).")
