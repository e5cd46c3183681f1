"""Checkpoints on disk: folders written whole or not at all, verified when they are read.

    checkpoints/step-000123/    tensors (safetensors), state.json, and manifest.json with the SHA-256 of each file
    checkpoints/LATEST          the name of the newest

A folder is written beside its place, each file synced, the manifest last, and then renamed: there is never a name
with half a checkpoint. A process that is killed leaves a `.part` folder, which the next one removes.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from samtune.base.disk import disk_errors
from samtune.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANIFEST, STATE, LATEST, PART = "manifest.json", "state.json", "LATEST", ".part"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: tensors by file, by name; and the rest."""

    name: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: of the checkpoints; need not exist.
        about: what a checkpoint belongs to, such as the hash of the base: one that says otherwise is refused.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        self.folder, self.about = folder, dict(about)

    def names(self, kind: str) -> list[str]:
        """Returns the names of a kind, the newest first."""
        found = [path.name for path in self.folder.glob(f"{kind}-*") if path.suffix != PART]
        pointer = self.folder / LATEST
        latest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        return sorted(found, key=lambda name: (name == latest, *map(int, name.split("-")[1:])), reverse=True)

    def save(
        self, kind: str, number: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> str:
        """Writes a checkpoint and returns its name; the newest is then this one.

        Args:
            kind: the first part of the name; `number` is the second.
            tensors: file stem -> name -> tensor.
            state: what JSON can hold.

        Raises:
            DiskError: it can't be written; the earlier ones are as they were.
        """
        name = self._free_name(kind, number)
        contents = {f"{stem}.safetensors": _to_bytes(values) for stem, values in tensors.items()}
        contents[STATE] = json.dumps(state, allow_nan=False).encode()
        part = self.folder / f"{name}{PART}"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            try:
                part.mkdir()
                for file, content in contents.items():
                    _write(part / file, content)
                hashes = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
                manifest = {"about": self.about, "sha256": hashes}
                _write(part / MANIFEST, json.dumps(manifest, indent=1).encode())
                _sync(part)
                part.rename(self.folder / name)
                _sync(self.folder)
                _write(self.folder / f"{LATEST}{PART}", f"{name}\n".encode())
                (self.folder / f"{LATEST}{PART}").replace(self.folder / LATEST)
                _sync(self.folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        return name

    def load(self, name: str) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            CheckpointError: missing or damaged, or it belongs to something else.
        """
        folder = self.folder / name
        manifest = _json(folder / MANIFEST)
        hashes, about = manifest.get("sha256"), manifest.get("about")
        if not isinstance(hashes, dict) or not isinstance(about, dict) or STATE not in hashes:
            raise CheckpointError(f"{folder / MANIFEST} is damaged (it lists no files).")
        for key, value in self.about.items():
            if about.get(key) != value:
                raise CheckpointError(
                    f"{folder} belongs to another {key} ({str(about.get(key))[:12]}, here {value[:12]})."
                )
        contents = {file: _checked(folder / file, str(digest)) for file, digest in hashes.items()}
        state = json.loads(contents.pop(STATE))
        try:
            tensors = {file.removesuffix(".safetensors"): load(content) for file, content in contents.items()}
        except SafetensorError as err:  # its hash is right: it was written so
            raise CheckpointError(f"{folder} can't be read ({err}).") from err
        return Checkpoint(name, tensors, state)

    def newest(self, kind: str, read: Callable[[Checkpoint], T]) -> T | None:
        """Returns what `read` makes of the newest checkpoint that verifies; None where there is none.

        Why a newer one does not is logged.

        Raises:
            CheckpointError: there are some, and none verifies.
        """
        problems = []
        for name in self.names(kind):
            try:
                return read(self.load(name))
            except CheckpointError as err:
                logger.warning("%s The one before is tried.", err)
                problems.append(str(err))
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used: {' '.join(problems)} Start anew with --overwrite."
            )
        return None

    def _free_name(self, kind: str, number: int) -> str:
        """Returns a new name: a training that went back comes to a step a second time."""
        names = (f"{kind}-{number:06d}" + ("" if n == 1 else f"-{n}") for n in count(1))
        return next(name for name in names if not (self.folder / name).exists())

    def keep(self, names: Collection[str], kinds: Collection[str]) -> None:
        """Removes all checkpoints of these kinds but the named ones, and what killed processes left."""
        with disk_errors(self.folder):
            for path in [*self.folder.glob(f"*{PART}"), *(self.folder / n for kind in kinds for n in self.names(kind))]:
                if path.name not in names:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked(path: Path, digest: str) -> bytes:
    """Returns the content of a file whose SHA-256 is as it should be."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path} can't be read ({err.strerror}).") from err
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one of its manifest).")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as err:
        raise CheckpointError(f"{path} can't be read ({err.strerror}).") from err
    except ValueError as err:
        raise CheckpointError(f"{path} is damaged ({err}).") from err
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged (it is no JSON object).")
    return found
