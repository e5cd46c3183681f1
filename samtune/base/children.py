"""Processes that are started, waited for, and never left behind, not even when this process is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

GRACE_SECONDS = 10.0  # between asking a child to end and killing it

# A process that reads "+PID" and "-PID" lines. Its input ends when this process does, however that came: then it
# kills what still runs. It is in a session of its own, where no Ctrl-C reaches it.
_GUARD = """
import os, signal, sys
running = set()
for line in sys.stdin:
    (running.add if line[0] == "+" else running.discard)(int(line[1:]))
for pid in running:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Children:
    """The processes that run now, a context manager; once stopped, no further one starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._guard is not None:
            self._guard.communicate()

    def run(self, command: list[str], log: Path, threads: int) -> int:
        """Runs a command and returns its exit code, negative for a signal.

        Args:
            threads: for its arithmetic; the user's own OMP_NUM_THREADS counts more.
        """
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with log.open("w", encoding="utf-8") as file, self._lock:
            if self._stopped:
                return -signal.SIGTERM
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self._running.add(child.pid)
            self._tell_guard(f"+{child.pid}\n")
        child.wait()
        with self._lock:
            self._running.discard(child.pid)
            self._tell_guard(f"-{child.pid}\n")
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

    def _tell_guard(self, line: str) -> None:
        if self._guard is None:
            command, pipe, nothing = [sys.executable, "-S", "-c", _GUARD], subprocess.PIPE, subprocess.DEVNULL
            self._guard = subprocess.Popen(
                command, stdin=pipe, stdout=nothing, stderr=nothing, bufsize=0, start_new_session=True
            )
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # without a guard a run is still a run
            self._guard.stdin.write(line.encode())
