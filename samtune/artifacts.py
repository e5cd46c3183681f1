"""The files of a finished run: delta, merged model, export; what they hold and whether it is true.

A delta holds, for every tuned tensor, where it changed and how: base bits XOR tuned bits. So the same file turns
the base into the merged model and back, exactly, and it is bound to its base by a hash.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samtune.download import file_sha256
from samtune.errors import CheckpointError, DiskError
from samtune.models import SPECS, build_model
from samtune.models.merged import read_merged_info
from samtune.models.weights import OFFICIAL, read_state
from samtune.selection.selection import Selection, load_selection, pack_indices, unpack_indices
from samtune.tensorfile import read_metadata, save_tensors, state_hash

logger = logging.getLogger(__name__)

DELTA_FORMAT = "samtune-delta-1"


@dataclass(frozen=True)
class DiffRow:
    """How one tensor differs: entries changed, of how many, by how much at most."""

    name: str
    changed: int
    total: int
    max_abs: float


@dataclass(frozen=True)
class AuditReport:
    """The answer of an audit.

    Attributes:
        ok: True when nothing outside of the selection changed.
        lines: what was compared and found, for people.
    """

    ok: bool
    lines: tuple[str, ...]


def save_delta(
    path: Path,
    *,
    base: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    selection: Selection,
    metadata: Mapping[str, str],
) -> None:
    """Writes the delta between two states of a model.

    Args:
        path: the file.
        base: the untuned fp32 state.
        merged: the tuned fp32 state.
        selection: names the entries that may differ.
        metadata: of the merged file, kept so that `apply` can write the same one.
    """
    tensors: dict[str, Tensor] = {}
    for name in selection.names():
        bits = _bits(base[name]) ^ _bits(merged[name])
        if name in selection.entries:
            indices = selection.entries[name]
            kind, packed = pack_indices(indices, tuple(base[name].shape))
            tensors[f"{kind}/{name}"] = packed
            bits = bits[indices]
        tensors[f"bits/{name}"] = bits
    binding = {"base_hash": state_hash(base), "merged_hash": state_hash(merged), "merged": json.dumps(dict(metadata))}
    save_tensors(path, tensors, {"format": DELTA_FORMAT, **binding})


def apply_delta(base: str | Path, delta: Path, out: Path) -> None:
    """Writes the merged model of a base and a delta.

    Args:
        base: a checkpoint file, or a model's name for its own weights.
        delta: `delta.safetensors` of a run.
        out: the merged file to write.

    Raises:
        CheckpointError: a delta of another base, or a damaged file.
    """
    state, metadata = _base_state(base), _delta_metadata(delta)
    _expect(state, metadata["base_hash"], f"{delta} belongs to another base than {base}")
    merged = _flip(state, delta)
    _expect(merged, metadata["merged_hash"], f"{delta} is damaged: the merged weights are not those of its run")
    save_tensors(out, merged, json.loads(metadata["merged"]))


def undo_delta(merged: Path, delta: Path, out: Path) -> None:
    """Writes the base of a merged model, bit for bit.

    Args:
        merged: `merged.safetensors` of the delta's run.
        delta: `delta.safetensors` of the same run.
        out: the base file to write, fp32 safetensors.

    Raises:
        CheckpointError: files of two runs, or a damaged file.
    """
    state, metadata = read_state(merged), _delta_metadata(delta)
    _expect(state, metadata["merged_hash"], f"{delta} belongs to another merged model than {merged}")
    base = _flip(state, delta)
    _expect(base, metadata["base_hash"], f"{delta} is damaged: the result is not its base")
    save_tensors(out, base, {"base_hash": metadata["base_hash"]})


def delta_restores(base: Mapping[str, Tensor], delta: Path) -> bool:
    """Says whether a delta file leads from this base to its merged model and back."""
    metadata = _delta_metadata(delta)
    merged = _flip(base, delta)
    back = _flip(merged, delta)
    return state_hash(merged) == metadata["merged_hash"] and state_hash(back) == metadata["base_hash"]


def export_checkpoint(merged: Path, out: Path, *, format: str = "pth") -> None:
    """Writes a merged model as a `.pth` that segment-anything's `sam_model_registry` loads strictly.

    Stock code always runs at 1024 px; a model tuned at another size predicts best at that size.

    Raises:
        CheckpointError: unknown format, or no merged file.
        DiskError: `out` can't be written.
    """
    if format != "pth":
        raise CheckpointError(f"unknown format {format!r}. Known: pth.")
    info = read_merged_info(merged)
    state = read_state(merged)
    partial = out.with_name(out.name + ".part")
    try:
        torch.save(state, partial)
        partial.replace(out)
    except (RuntimeError, OSError) as err:
        with suppress(OSError):
            partial.unlink()
        raise DiskError(f"can't write {out} ({err}). Free some space, or name a file in a writable folder.") from err
    logger.info("segment-anything runs at 1024 px; this model was tuned at %d px", info.image_size)
    if info.model not in OFFICIAL:
        logger.warning("segment-anything's registry has no %s: it needs a model of that shape to load it", info.model)


def inspect_file(path: Path) -> dict[str, object]:
    """Returns what a model, selection or delta file says of itself: metadata, counts, size, SHA-256."""
    facts: dict[str, object] = {"file": str(path)}
    if path.suffix == ".safetensors":
        facts |= {key: _short(value) for key, value in sorted(read_metadata(path).items())}
        try:
            state = load_file(path)
        except SafetensorError as err:
            raise CheckpointError(f"{path} is damaged ({err}).") from err
    else:
        state = read_state(path)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})
    facts |= {"tensors": len(state), "numbers": sum(t.numel() for t in state.values()), "types": ", ".join(dtypes)}
    return facts | {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def diff_files(a: str | Path, b: str | Path) -> list[DiffRow]:
    """Compares two models tensor by tensor, bit for bit.

    Returns:
        The tensors that differ.

    Raises:
        CheckpointError: the files are not of one architecture.
    """
    left, right = _base_state(a), _base_state(b)
    odd = sorted(set(left) ^ set(right)) or [n for n in left if left[n].shape != right[n].shape]
    if odd:
        raise CheckpointError(f"{a} and {b} are not of one model: they differ in {odd[0]!r} ({len(odd)} tensors).")
    rows = []
    for name, tensor in left.items():
        changed = int((_bits(tensor) != _bits(right[name])).sum())
        if changed:
            largest = float((tensor.float() - right[name].float()).abs().max())
            rows.append(DiffRow(name, changed, tensor.numel(), largest))
    return rows


def audit_files(base: str | Path, merged: Path, selection: Path) -> AuditReport:
    """Checks that a merged model differs from its base only where its selection allows; see `audit`.

    Raises:
        CheckpointError: a missing or damaged file, or a selection that was made for another base.
    """
    state, chosen = _base_state(base), load_selection(selection)
    if "base_hash" in chosen.provenance:
        _expect(state, chosen.provenance["base_hash"], f"{selection} belongs to another base than {base}")
    return audit(state, read_state(merged), chosen)


def audit(base: Mapping[str, Tensor], merged: Mapping[str, Tensor], selection: Selection) -> AuditReport:
    """Checks that everything outside of a selection is bit-equal.

    Args:
        base: state of the untuned model.
        merged: state of the tuned model.
        selection: what was allowed to change.

    Raises:
        CheckpointError: the selection does not fit the base.
    """
    _check_fits(selection, base)
    if set(base) != set(merged):
        return AuditReport(False, (f"the files have different tensors: {sorted(set(base) ^ set(merged))[:3]}",))
    frozen = tuned = 0
    strays = []
    for name, tensor in base.items():
        changed = _bits(tensor) != _bits(merged[name])
        allowed = torch.zeros_like(changed)
        if name in selection.whole:
            allowed[:] = True
        elif name in selection.entries:
            allowed[selection.entries[name]] = True
        frozen += int((~allowed).sum())
        tuned += int((changed & allowed).sum())
        if bool((changed & ~allowed).any()):
            strays.append(f"{name}: {int((changed & ~allowed).sum())} entries changed outside of the selection")
    verdict = f"{frozen:,} unselected entries bit-equal to the base" if not strays else f"{len(strays)} tensors moved"
    allowed_total = sum(t.numel() for t in base.values()) - frozen
    return AuditReport(not strays, (verdict, f"{tuned:,} of {allowed_total:,} selected entries changed", *strays))


def _check_fits(selection: Selection, base: Mapping[str, Tensor]) -> None:
    for name in selection.names():
        if name not in base:
            raise CheckpointError(f"the selection tunes {name!r}, which the base does not have: another model's?")
    for name, indices in selection.entries.items():
        size = base[name].numel()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise CheckpointError(f"the selection points outside of {name!r} ({size} entries).")


def _base_state(base: str | Path) -> dict[str, Tensor]:
    """Returns the fp32 state of a checkpoint file or of a model given by name."""
    if str(base) in SPECS:
        return dict(build_model(str(base)).state_dict())
    if not Path(base).is_file():
        raise CheckpointError(f"{base} is neither a checkpoint file nor a model. Known models: {', '.join(SPECS)}.")
    return {name: tensor.float() for name, tensor in read_state(Path(base)).items()}


def _delta_metadata(path: Path) -> dict[str, str]:
    metadata = read_metadata(path)
    found = metadata.get("format", "none")
    if found != DELTA_FORMAT:
        raise CheckpointError(
            f"{path} is no delta file (its format: {found}, not {DELTA_FORMAT}). "
            "Give the delta.safetensors of a run folder."
        )
    return metadata


def _expect(state: Mapping[str, Tensor], wanted: str, problem: str) -> None:
    found = state_hash(state)
    if found != wanted:
        raise CheckpointError(f"{problem} (hash {found[:12]}, expected {wanted[:12]}).")


def _flip(state: Mapping[str, Tensor], delta: Path) -> dict[str, Tensor]:
    """Returns the state with the delta's bits flipped; doing it twice changes nothing."""
    flipped = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    try:
        packed = load_file(delta)
        for key in (k for k in packed if k.startswith("bits/")):
            name = key.removeprefix("bits/")
            bits = _bits(flipped[name])
            where: Tensor | slice = slice(None)
            for kind in ("columns", "flat"):
                if f"{kind}/{name}" in packed:
                    where = unpack_indices(kind, packed[f"{kind}/{name}"], tuple(flipped[name].shape))
            bits[where] ^= packed[key]
    except (SafetensorError, KeyError, IndexError, RuntimeError) as err:  # before a hash could tell
        raise CheckpointError(f"{delta} is damaged ({err}).") from err
    return flipped


def _bits(tensor: Tensor) -> Tensor:
    """Returns the (n,) int32 view of an fp32 tensor's bits."""
    return tensor.detach().cpu().contiguous().float().view(-1).view(torch.int32)


def _short(value: str) -> str:
    return value if len(value) <= 200 else value[:200] + "..."
