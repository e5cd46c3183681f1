"""How does a process end when it is asked to? The first signal waits for a good moment, the second one does not.

`command` makes every asking signal end the process in order, as an exception that closes what is open. Inside
`deferred` the first one only sets a flag: a training finishes its step and saves.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

REPEAT = 0.5
"""Seconds in which a signal to a whole group comes both directly and from who started the process."""
ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """The process was asked to end; `code` is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Stop:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def end(self) -> None:
        """Raises `Stopped` if the process was asked to end."""
        if self.number is not None:
            raise Stopped(self.number)


def end_by_signals() -> None:
    """Lets SIGTERM and SIGHUP end this process as Ctrl-C does; the exit codes are 130, 143 and 129."""
    for number in heeded():
        signal.signal(number, _end)


def heeded() -> list[int]:
    """Returns the signals that this process was not started to ignore, as nohup does."""
    return [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]


def _end(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def deferred(what: str) -> Iterator[Stop]:
    """Notes the first asking signal instead of ending at once; `what` is then said to be finished first.

    A second one ends at once; within `REPEAT` seconds it is the first one again, which came by two ways. Threads other
    than the main one get no signals: there, nothing changes.
    """
    stop, noted = Stop(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if stop and time.monotonic() - noted > REPEAT:
            raise Stopped(number)
        if stop:
            return
        stop.number, noted = number, time.monotonic()
        logger.warning("%s: %s first; once more ends at once", signal.Signals(number).name, what)

    before = {number: signal.signal(number, note) for number in heeded()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
