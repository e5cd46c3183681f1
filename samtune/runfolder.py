"""The run folder: made once, never silently reused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from samtune.errors import DiskError, RunFolderError

MARKER = ".samtune-run"  # in every run folder: no other folder is ever emptied


def open_run_folder(parent: Path, run_dir: Path | None, *, overwrite: bool) -> Path:
    """Makes a run folder that holds nothing but the marker.

    Args:
        parent: gets a folder named by the time when `run_dir` is None.
        run_dir: the folder itself.
        overwrite: empty a run folder that was used before.

    Raises:
        RunFolderError: it holds an earlier run.
        DiskError: it can't be made or written.
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
        raise DiskError(f"can't write to {folder}: {err.strerror or err}. Choose a writable folder.") from err


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
