"""What is written to disk: files whole or not at all, and the user's cache.

Every file of a run is written through here: a reader, or a run that goes on, never meets half a file.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from samtune.errors import DiskError

_NUMBERS = count()  # of unfinished files: threads may write the same one, as other processes may
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; when the block ends well, that file replaces `path` in one step.

    The folder is made if needed. After an error the old file is as it was, and nothing is left beside it.

    Raises:
        DiskError: the folder or file can't be written.
    """
    partial = path.with_name(
        f"{path.name}.{os.getpid()}-{next(_NUMBERS)}.part"
    )  # other processes may write the same file
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Writes a JSON file that ends with a newline, whole or not at all; see `replacing`.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def cache_folder() -> Path:
    """Returns the user's cache: `$XDG_CACHE_HOME/samtune`, by default `~/.cache/samtune`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samtune"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write to a file or folder into a `DiskError`."""
    try:
        yield
    except OSError as err:
        reason = err.strerror or str(err)
        if err.errno in _FULL or "os error 28" in reason or "os error 27" in reason:  # as safetensors words them
            free = f"{free_bytes(path) / 1e6:,.1f} MB are free there"
            raise DiskError(
                f"can't write to {path}: {reason}; {free}. Free some space, or choose another folder."
            ) from err
        raise DiskError(f"can't write to {path}: {reason}. Choose a writable folder.") from err


def free_bytes(path: Path) -> int:
    """Returns the bytes that this user may still write where `path` is, or would be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
