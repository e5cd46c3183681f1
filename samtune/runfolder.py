"""The run folder: made once, never silently reused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samtune.errors import DiskError, RunFolderError


def open_run_folder(parent: Path, run_dir: Path | None, *, overwrite: bool) -> Path:
    """Makes an empty run folder.

    Args:
        parent: gets a folder named by the time when `run_dir` is None.
        run_dir: the folder itself.
        overwrite: empty a run folder that was used before.

    Raises:
        RunFolderError: it holds an earlier run.
        DiskError: it can't be made or written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(run_dir) if run_dir is not None else parent / stamp
    with disk_errors(folder):
        if run_dir is None:
            number = 1
            while folder.exists():
                number += 1
                folder = folder.with_name(f"{stamp}-{number}")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise RunFolderError(
                    f"run folder {folder} holds an earlier run. Choose another --run-dir, or --overwrite it."
                )
            if not (folder / "config.yaml").exists():
                raise RunFolderError(f"{folder} is not empty and no run folder; it is not emptied. Choose another.")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    return folder


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `DiskError`."""
    try:
        yield
    except OSError as err:
        raise DiskError(f"can't write to {folder}: {err.strerror or err}. Choose a writable folder.") from err
