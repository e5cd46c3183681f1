"""Starts the processes of a run on several devices, and ends them all when one of them ends badly.

Each runs the same command, told apart by the variables that torchrun sets too. They are in sessions of their own: what
a terminal sends, such as Ctrl-C, comes to this process, which passes it on once.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from samtune.base.signals import heeded

GRACE_SECONDS = 15.0
"""For the others to end by themselves, saving what they have, when one has failed."""
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def is_rank() -> bool:
    """Tells whether this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_with_parent() -> None:
    """Lets this process be killed when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def launch(command: Sequence[str], count: int, *, threads: int) -> int:
    """Runs a command in `count` processes that train together; returns the first exit code that is not 0, or 0.

    Args:
        threads: for the arithmetic of each; the user's own OMP_NUM_THREADS counts more.
    """
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(_free_port())}
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        _send(children, number)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **shared, **own}
            children.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return _wait(children)
    finally:
        _send(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Waits for all to end; after a failure, only for a while."""
    code, deadline = 0, float("inf")
    while None in [child.poll() for child in children] and time.monotonic() < deadline:  # a list: all are polled
        failed = next((child.returncode for child in children if child.returncode), 0)
        if failed and not code:
            code, deadline = failed, time.monotonic() + GRACE_SECONDS
        time.sleep(0.05)
    code = code or next((child.returncode for child in children if child.returncode), 0)
    return code if code >= 0 else 128 - code


def _send(children: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
