"""Files of named tensors with metadata (safetensors), and the hash that names a set of weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from samtune.base.disk import replacing
from samtune.errors import CheckpointError


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hashes weights: SHA-256 over (name, dtype, shape, little-endian bytes) of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def in_fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors on the CPU, those of floats in fp32; counters, such as those of batch norms, stay whole."""
    return {n: t.detach().cpu().float() if t.is_floating_point() else t.detach().cpu() for n, t in state.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file; a `CheckpointError` says that it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({err}).") from err


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file; a `CheckpointError` says that it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is damaged ({err}).") from err


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically: the old file stays whole until the new one is.

    The same tensors and metadata give the same bytes.

    Raises:
        DiskError: a full disk, or a folder that is missing or not writable.
    """
    with replacing(path) as partial:
        try:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata=dict(metadata))
        except SafetensorError as err:  # how it reports a full disk
            raise OSError(str(err)) from err
        _sort_metadata(partial)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file in order: the library's own differs from call to call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the header keeps its length; spaces at its end mean nothing
            file.seek(8)
            file.write(text.ljust(size))
