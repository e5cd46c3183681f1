"""Processes that are started, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 10.0  # between asking a child to end and killing it


class Children:
    """The processes that run now; once stopped, no further one starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False

    def run(self, command: list[str], log: Path, threads: int) -> int:
        """Runs a command and waits for it.

        Args:
            command: program and arguments.
            log: gets what it prints.
            threads: for its arithmetic; the user's own OMP_NUM_THREADS counts more.

        Returns:
            Its exit code, negative for a signal.
        """
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with log.open("w", encoding="utf-8") as file, self._lock:
            if self._stopped:
                return -signal.SIGTERM
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self._running.add(child.pid)
        child.wait()
        with self._lock:
            self._running.discard(child.pid)
        return child.returncode

    def stop(self) -> None:
        """Asks every process to end, and kills those that do not."""
        with self._lock:
            self._stopped = True
        self._signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        try:
            while self._running and time.monotonic() < end:
                time.sleep(0.05)
        finally:  # a second Ctrl-C does not wait
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            for pid in self._running:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
