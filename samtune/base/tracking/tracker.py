"""Who talks to MLflow, and how long may a run wait for it? A thread of its own, and 5 seconds in all.

Nothing that goes wrong there stops a training: a warning says so once, and the run goes on without.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from samtune.base.tracking.mlflow_run import MlflowRun, Store

logger = logging.getLogger(__name__)

WAIT = 5.0
"""Seconds that a run waits for MLflow, in all."""
FIRST_DATABASE = 60.0
"""Seconds that a run which ends well waits for its database on this machine to open: the first one is made, which takes
4 s of computing; a training of that length never waits for it."""

Work = Callable[[MlflowRun], object]


class Tracker:
    """Does work on a run of MLflow, in order, while the caller goes on.

    Args:
        open_run: finds or begins the run, in the thread.
        remedy: ends the warning: what has everything, and what to do.
    """

    def __init__(self, store: Store, open_run: Callable[[], MlflowRun], *, remedy: str) -> None:
        self.run_id: str | None = None
        self._store, self._open, self._remedy = store, open_run, remedy
        self._left = WAIT
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._opened, self._over, self._lock = threading.Event(), False, threading.Lock()
        self._thread = threading.Thread(target=self._work, name="samtune-mlflow", daemon=True)
        self._thread.start()

    def do(self, work: Work) -> None:
        """Queues work; what comes after a failure is dropped."""
        if not self._over:
            self._queue.put(work)

    def wait_for_id(self) -> str | None:
        """Returns the run's id in MLflow once it is known; None if it does not get one in time."""
        if self._store.database is not None:
            self._opened.wait(FIRST_DATABASE)
        else:
            self._wait(self._opened.wait)
        return self.run_id

    def close(self, *, patient: bool) -> None:
        """Waits until all work is done, or gives up.

        Args:
            patient: also wait for a database on this machine to open.
        """
        self._queue.put(None)
        if patient:
            self.wait_for_id()
        self._wait(self._thread.join)
        if self._thread.is_alive():
            self._give_up(f"it took longer than {WAIT:g} s")

    def _wait(self, wait: Callable[[float], object]) -> None:
        start = time.monotonic()
        wait(max(0.0, self._left))
        self._left -= time.monotonic() - start

    def _work(self) -> None:
        try:
            run = self._open()
            self.run_id = run.run_id
            self._opened.set()
            for work in iter(self._queue.get, None):
                if self._over:
                    return
                work(run)
        except Exception as err:
            self._give_up(reason_of(err))
        finally:
            self._opened.set()

    def _give_up(self, reason: str) -> None:
        with self._lock:
            first, self._over = not self._over, True
        if first:
            warn(reason, self._remedy)


def warn(reason: str, remedy: str) -> None:
    """Says that MLflow does not take a run, and what to do."""
    logger.warning("MLflow does not take this run (%s); %s", reason, remedy)


def reason_of(err: Exception) -> str:
    """Words an error of MLflow in one short line, by what the system said if it did; no password in an address."""
    chain: list[BaseException] = [err]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    told = next((error for error in reversed(chain) if isinstance(error, OSError | sqlite3.Error)), err)
    lines = re.sub(r"//[^/@\s]*@", "//", str(told)).splitlines()
    return f"{type(told).__name__}: {lines[0][:200]}" if lines else type(told).__name__
