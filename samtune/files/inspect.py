"""What do files hold, and how do they differ?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samtune.base.download import file_sha256
from samtune.base.tensors import load_tensors, read_metadata
from samtune.errors import CheckpointError
from samtune.files.delta import base_state, bits_of
from samtune.models.weights import read_state


@dataclass(frozen=True)
class DiffRow:
    """How one tensor differs: entries changed, of how many, by how much at most."""

    name: str
    changed: int
    total: int
    max_abs: float


def inspect_file(path: Path) -> dict[str, object]:
    """Returns what a model, selection or delta file says of itself: metadata, counts, size, SHA-256."""
    facts: dict[str, object] = {"file": str(path)}
    if path.suffix == ".safetensors":
        facts |= {key: _short(value) for key, value in sorted(read_metadata(path).items())}
        state = load_tensors(path)
    else:
        state = read_state(path)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})
    facts |= {"tensors": len(state), "numbers": sum(t.numel() for t in state.values()), "types": ", ".join(dtypes)}
    return facts | {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def diff_files(a: str | Path, b: str | Path) -> list[DiffRow]:
    """Returns the tensors that differ, bit for bit, between two models.

    Raises:
        CheckpointError: the files are not of one architecture.
    """
    left, right = base_state(a), base_state(b)
    odd = sorted(set(left) ^ set(right)) or [n for n in left if left[n].shape != right[n].shape]
    if odd:
        raise CheckpointError(f"{a} and {b} are not of one model: they differ in {odd[0]!r} ({len(odd)} tensors).")
    rows = []
    for name, tensor in left.items():
        changed = int((bits_of(tensor) != bits_of(right[name])).sum())
        if changed:
            largest = float((tensor.float() - right[name].float()).abs().max())
            rows.append(DiffRow(name, changed, tensor.numel(), largest))
    return rows


def _short(value: str) -> str:
    return value if len(value) <= 200 else value[:200] + "..."
