"""Runs the cells of a sweep on this machine, several at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from samtune.base.children import Children
from samtune.errors import ConfigError
from samtune.sweep.plan import Cell
from samtune.sweep.trial import TrialResult, run_trial

Done = Callable[[TrialResult], None]  # is told of every run that ended
RunAll = Callable[[list[Cell], Done], None]  # runs all of the cells, and returns when the last one ended


@contextmanager
def local_engine(*, jobs: int, folder: Path, address: str | None) -> Iterator[RunAll]:
    """Opens the engine that runs child processes from a pool of threads; each of the `jobs` has its share of the cores.

    Raises:
        ConfigError: an address, which only Ray can use.
    """
    if address is not None:
        raise ConfigError(f"--address {address}: only Ray runs on other machines; add --engine ray.")
    yield partial(_run_all, jobs=jobs)


def _run_all(cells: list[Cell], done: Done, *, jobs: int) -> None:
    threads = max(1, cores() // jobs)
    with Children() as children, ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(run_trial, cell, children, threads=threads) for cell in cells]):
                done(future.result())
        except BaseException:  # Ctrl-C and SIGTERM arrive here
            children.stop()
            raise


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
