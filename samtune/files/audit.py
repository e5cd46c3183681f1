"""What do files hold, how do they differ, and is a tuned model bit-equal to its base outside of its selection?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samtune.base.download import file_sha256
from samtune.base.tensors import load_tensors, read_metadata, state_hash
from samtune.errors import CheckpointError
from samtune.files.delta import (
    base_state,
    bits_of,
    given_file,
    hash_problem,
    mapped_base,
    read_weights,
    state_of_folder,
)
from samtune.files.description import Description
from samtune.files.layouts import in_one_layout, selection_in
from samtune.models.hf.folder import CONFIG, family_of
from samtune.models.hf.meta import meta_family, meta_map_of
from samtune.models.weights import read_state
from samtune.selection.selection import Selection, load_selection


@dataclass(frozen=True)
class AuditReport:
    """Whether nothing outside of the selection changed, and what was compared and found, for people.

    Attributes:
        idle: nothing inside of it changed either, though there is something.
    """

    ok: bool
    lines: tuple[str, ...]
    idle: bool = False


def audit_files(base: str | Path, merged: Path, selection: Path) -> AuditReport:
    """As `audit`, of files; a damaged one, or a selection made for another base, is a `CheckpointError`."""
    chosen = load_selection(selection)
    tuned = state_of_folder(merged) if (merged / CONFIG).is_file() else read_weights(merged)
    if meta_family(tuned) is None:
        state, _ = mapped_base(base, Description.read(merged), merged)
    else:  # of any size: names and shapes tell all; what is beside the model's own tensors counts where both have it
        state = base_state(base)
        if meta_family(state) is None:
            tuned = meta_map_of(tuned, merged).to_transformers(tuned)
    fitting, found = selection_in(state, chosen, base)
    if (wanted := fitting.provenance.get("base_hash", found)) != found:
        raise CheckpointError(hash_problem(f"{selection} belongs to another base than {base}", found, wanted))
    return audit(state, tuned, fitting)


def audit(base: Mapping[str, Tensor], merged: Mapping[str, Tensor], selection: Selection) -> AuditReport:
    """Checks that everything outside of a selection is bit-equal in the states of a base and its tuned model.

    Raises:
        CheckpointError: the selection does not fit the base.
    """
    _check_fits(selection, base)
    added = {name for name in merged if name.startswith(tuple(f"{a.name}." for a in selection.additions))}
    if odd := _unlike(base, {name: tensor for name, tensor in merged.items() if name not in added}):
        return AuditReport(False, (f"the files have different tensors: {', '.join(odd[:3])}",))
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
    lines = (verdict, f"{tuned:,} of {allowed_total:,} selected entries changed", *strays)
    return AuditReport(not strays, lines, idle=not tuned and allowed_total > 0)


def _check_fits(selection: Selection, base: Mapping[str, Tensor]) -> None:
    hosts = {name.rpartition(".")[0] for name in base}
    unknown = [name for name in selection.names() if name not in base]
    wanted = [addition.module for addition in selection.additions]
    unknown += [module for module in wanted if not any(f"{host}.".startswith(f"{module}.") for host in hosts)]
    if unknown:
        raise CheckpointError(f"the selection tunes {unknown[0]!r}, which the base does not have: another model's?")
    for name, indices in selection.entries.items():
        size = base[name].numel()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise CheckpointError(f"the selection points outside of {name!r} ({size} entries).")


@dataclass(frozen=True)
class DiffRow:
    """How one tensor differs: entries changed, of how many, by how much at most."""

    name: str
    changed: int
    total: int
    max_abs: float


def inspect_file(given: str | Path) -> dict[str, object]:
    """Returns what a model, selection or delta says of itself: metadata, counts, size, SHA-256.

    Args:
        given: a file, a folder of transformers, or the name of a model for its own weights.
    """
    path = given_file(given)
    if path is None:
        state = base_state(given)
        return {"model": str(given), **_counts(state), "base_hash": state_hash(state)}
    if path.is_dir():
        state = base_state(path)
        return {"folder": str(path), "model": family_of(path), **_counts(state), "base_hash": state_hash(state)}
    facts: dict[str, object] = {"file": str(path)}
    if path.suffix == ".safetensors":
        metadata = sorted(read_metadata(path).items())
        facts |= {key: value if len(value) <= 200 else value[:200] + "..." for key, value in metadata}
        state = load_tensors(path)
    else:
        state = read_state(path)
    if meta_family(state) is not None:
        facts["layout"] = meta_map_of(state, "the file").account("it")
    return facts | _counts(state) | {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _counts(state: Mapping[str, Tensor]) -> dict[str, object]:
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})
    facts: dict[str, object] = {"tensors": len(state), "numbers": sum(t.numel() for t in state.values())}
    facts["types"] = ", ".join(dtypes)
    broken = [n for n, t in state.items() if t.is_floating_point() and not bool(t.float().isfinite().all())]
    return facts | ({"NaN or infinity in": f"{len(broken)} tensors: {', '.join(broken[:3])}"} if broken else {})


def diff_files(a: str | Path, b: str | Path) -> list[DiffRow]:
    """Returns the tensors that differ, bit for bit, between two models, which may be in two layouts.

    Raises:
        CheckpointError: the files are not of one architecture.
    """
    left, right = in_one_layout(base_state(a), base_state(b), (a, b))
    if odd := _unlike(left, right):
        raise CheckpointError(f"{a} and {b} are not of one model: they differ in {odd[0]!r} ({len(odd)} tensors).")
    rows = []
    for name, tensor in left.items():
        if changed := int((bits_of(tensor) != bits_of(right[name])).sum()):
            pair = [t if t.is_complex() else t.float() for t in (tensor, right[name])]
            largest = float((pair[0] - pair[1]).abs().max())
            rows.append(DiffRow(name, changed, tensor.numel(), largest))
    return rows


def _unlike(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of tensors that one state has and the other has not, or has in another shape or kind."""
    kinds = [{n: (t.shape, t.is_floating_point()) for n, t in state.items()} for state in (left, right)]
    return sorted(name for name in left.keys() | right.keys() if kinds[0].get(name) != kinds[1].get(name))
