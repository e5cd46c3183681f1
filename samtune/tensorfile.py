"""Files of named tensors with metadata (safetensors), and the hash that names a set of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samtune.errors import CheckpointError, DiskError


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hashes weights: SHA-256 over (name, dtype, shape, little-endian bytes) of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({err}).") from err


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically: the old file stays whole until the new one is.

    Raises:
        DiskError: a full disk, or a folder that is missing or not writable.
    """
    partial = path.with_name(path.name + ".part")
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata=dict(metadata))
        partial.chmod(0o644)  # safetensors makes files that only their owner can read
        partial.replace(path)
    except (SafetensorError, OSError) as err:
        with suppress(OSError):
            partial.unlink()
        raise DiskError(f"can't write {path} ({err}). Free some space, or name a file in a writable folder.") from err
