"""The folder of a run: made once, used by one process at a time, emptied only when it is a run's.

Its lock is the system's (a POSIX record lock): it ends with the process however that ends, and child processes don't
hold it. Its text says who holds it.
"""

import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from samtune.base.disk import disk_errors
from samtune.errors import DiskError, RunFolderError

MARKER = ".samtune-run"  # in every run folder: no other folder is ever emptied
_HELD: set[Path] = set()  # by this process: for it, the system's lock is no obstacle
_CHANGES = threading.Lock()
os.register_at_fork(after_in_child=_HELD.clear)


@contextmanager
def new_run(parent: Path, run_dir: Path | None, *, overwrite: bool) -> Iterator[Path]:
    """Makes a run folder that holds nothing but the marker, and yields it while it is locked.

    Args:
        parent: gets a folder named by the time when `run_dir` is None.
        overwrite: empty a run folder that was used before.

    Raises:
        RunFolderError: it holds an earlier run, or is in use.
    """
    with disk_errors(parent if run_dir is None else run_dir):
        folder = _new_folder(parent) if run_dir is None else run_dir
        foreign = _is_used(folder) and not (folder / MARKER).is_file()
    if foreign:
        raise RunFolderError(
            f"{folder} is not empty and no run folder (it has no {MARKER}); it is not emptied. "
            "Choose another --run-dir, or delete it yourself."
        )
    with locked(folder):
        if _is_used(folder) and not overwrite:
            raise RunFolderError(
                f"run folder {folder} holds an earlier run. Go on with it by --resume {folder}, choose another "
                "--run-dir, or --overwrite it."
            )
        with disk_errors(folder):
            _empty(folder)
        yield folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder, made if needed, for this process.

    Raises:
        RunFolderError: another process, or this one, holds it.
    """
    key = folder.resolve()
    with _CHANGES:
        if key in _HELD:  # opening its marker would end the lock when that is closed
            raise _in_use(folder, f"process {os.getpid()}, which is this one")
        _HELD.add(key)
    try:
        with _system_lock(folder):
            yield
    finally:
        _HELD.discard(key)


@contextmanager
def _system_lock(folder: Path) -> Iterator[None]:
    """Holds a folder against other processes."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _in_use(folder, _holder(file)) from None
        except OSError as err:  # a file system without locks
            raise DiskError(f"can't lock {folder / MARKER}: {err.strerror}. Choose a folder on another disk.") from err
        with disk_errors(folder):
            _sign(file)
        yield
    finally:
        os.close(file)


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != MARKER for path in folder.iterdir())


def _in_use(folder: Path, holder: str) -> RunFolderError:
    return RunFolderError(f"run folder {folder} is in use by {holder}. Wait for it, or choose another --run-dir.")


def _sign(file: int) -> None:
    """Writes who holds the lock; what is in a run folder is samtune's, which --overwrite may empty."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"run folder of": "samtune", "pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(file, 0)
    os.pwrite(file, (json.dumps(holder) + "\n").encode(), 0)


def _holder(file: int) -> str:
    """Words who wrote the lock's text."""
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return "another process"


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


def _empty(folder: Path) -> None:
    """Deletes what is in a run folder but for the marker: killed half-way, it still is a run folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
