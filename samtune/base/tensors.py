"""Files of named tensors with metadata (safetensors) that prove their own content, and the hash that names weights.

The metadata of a file of ours holds two hashes: of the bytes of its tensors, and of its whole header but for that hash.
Whoever reads the metadata checks the second, whoever reads the tensors both. Files of other programs, and older ones of
ours, have none and are read as they are.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from samtune.base.disk import replacing
from samtune.errors import CheckpointError

logger = logging.getLogger(__name__)

DATA_HASH, HEADER_HASH = "samtune_data_sha256", "samtune_header_sha256"
_REMEDY = "Get or make the file again."
# What files are that are taken for others, by how they begin.
SAFETENSORS = "by its content it is a safetensors file: name it .safetensors"
PYTORCH = "by its content it is an archive, as the .pth files of PyTorch are"
_KINDS = {
    b"PK": PYTORCH,
    b"\x80": PYTORCH,
    b"<": "it is a page of the web",
    b"version https://git-lfs": "it is a Git LFS pointer: git lfs pull gets the file",
}


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


def check_file(path: Path) -> None:
    """Refuses a path that is no file, with a `CheckpointError` that says what it is instead."""
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "no .safetensors"
        raise CheckpointError(f"{path} is a folder, and a file is needed. It holds: {found}.")
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to {path.readlink()}, which does not exist.")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")


def file_kind(path: Path) -> str | None:
    """Returns what a file is by its first bytes, a clause such as `SAFETENSORS`; None where they tell nothing."""
    with path.open("rb") as file:
        start = file.read(32)
    if start[8:10] == b'{"':
        return SAFETENSORS
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None if start else "it is empty")


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file, without its hashes.

    Raises:
        CheckpointError: no file, another file, or a damaged one: truncated, or its header is not what was written.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:  # the library checks sizes and places
            header = _read_header(file)
    except (SafetensorError, OSError, ValueError) as err:
        kind = file_kind(path)
        reason = err if kind in (None, SAFETENSORS) else kind
        if kind == PYTORCH and path.suffix == ".safetensors":
            reason = f"{kind}: name it so if it is one"
        raise CheckpointError(f"{path} is damaged or no safetensors file ({reason}). {_REMEDY}") from err
    metadata: dict[str, str] = header.get("__metadata__", {})
    if metadata.keys() & {DATA_HASH, HEADER_HASH} and metadata.get(HEADER_HASH) != _header_hash(header):
        raise CheckpointError(_damaged(path, "header"))
    return {key: value for key, value in metadata.items() if key not in (DATA_HASH, HEADER_HASH)}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file.

    Raises:
        CheckpointError: as `read_metadata`, or a byte of the tensors is not what was written.
    """
    read_metadata(path)
    with path.open("rb") as file:
        wanted = _read_header(file).get("__metadata__", {}).get(DATA_HASH)
        if wanted is None:
            logger.debug("%s holds no hash of its own: its tensors are taken as they are", path)
        elif hashlib.file_digest(file, "sha256").hexdigest() != wanted:
            raise CheckpointError(_damaged(path, "tensors"))
    return load_file(path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with its hashes atomically: the old file stays whole until the new one is.

    The same tensors and metadata give the same bytes.

    Raises:
        DiskError: a full disk, or a folder that is missing or not writable.
    """
    room = dict.fromkeys((DATA_HASH, HEADER_HASH), "0" * 64)  # the header keeps its length when they are known
    with replacing(path) as partial:
        try:
            plain = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
            save_file(plain, partial, metadata={**metadata, **room})
        except SafetensorError as err:  # how it reports a full disk
            raise OSError(str(err)) from err
        _seal(partial)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read


def _seal(path: Path) -> None:
    """Puts the hashes of a safetensors file into its header, and its metadata in order: the library's own differs."""
    with path.open("r+b") as file:
        header = _read_header(file)
        size = file.tell() - 8
        metadata = dict(sorted(header["__metadata__"].items()))
        header["__metadata__"] = metadata
        metadata[DATA_HASH] = hashlib.file_digest(file, "sha256").hexdigest()
        metadata[HEADER_HASH] = _header_hash(header)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # the library writes JSON without spaces too; those at the end mean nothing
        file.seek(8)
        file.write(text.ljust(size))


def _read_header(file: BinaryIO) -> dict[str, Any]:
    """Reads the header of a safetensors file, and leaves the file at the first byte of its tensors."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(size))  # type: ignore[no-any-return]


def _header_hash(header: Mapping[str, Any]) -> str:
    """Hashes what a header says, however its JSON is laid out: where tensors are, and metadata but for this hash."""
    metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key != HEADER_HASH}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: Path, part: str) -> str:
    return (
        f"{path} is damaged: its {part} differ from what was written, by the SHA-256 in its metadata. {_REMEDY} "
        f"A program that changes it on purpose leaves {DATA_HASH} and {HEADER_HASH} out."
    )
