"""What is written to disk: files whole or not at all, the run folder made once, the user's cache.

Every file of a run is written through here: a reader, or a run that goes on, never meets half a file.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from samtune.errors import DiskError, RunFolderError

_NUMBERS = count()  # of unfinished files: threads may write the same one, as other processes may
MARKER = ".samtune-run"  # in every run folder: no other folder is ever emptied


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


def open_run_folder(parent: Path, run_dir: Path | None, *, overwrite: bool) -> Path:
    """Makes a run folder that holds nothing but the marker.

    Args:
        parent: gets a folder named by the time when `run_dir` is None.
        overwrite: empty a run folder that was used before.

    Raises:
        RunFolderError: it holds an earlier run.
    """
    with disk_errors(parent if run_dir is None else run_dir):
        folder = _new_folder(parent) if run_dir is None else _given_folder(run_dir, overwrite=overwrite)
        (folder / MARKER).write_text("a run folder of samtune, which --overwrite may empty\n", encoding="utf-8")
    return folder


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `DiskError`."""
    try:
        yield
    except OSError as err:
        full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Choose another folder, or free some space." if full else "Choose a writable folder."
        raise DiskError(f"can't write to {folder}: {err.strerror or err}. {remedy}") from err


def _new_folder(parent: Path) -> Path:
    """Makes a folder named by the time; of two runs that start in one second, each gets its own."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _given_folder(folder: Path, *, overwrite: bool) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise RunFolderError(
                f"run folder {folder} holds an earlier run. Choose another --run-dir, or --overwrite it."
            )
        if not (folder / MARKER).is_file():
            raise RunFolderError(
                f"{folder} is not empty and no run folder (it has no {MARKER}); it is not emptied. "
                "Choose another --run-dir, or delete it yourself."
            )
        _empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _empty(folder: Path) -> None:
    """Deletes what is in a run folder, the marker last: killed half-way, it still is a run folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
