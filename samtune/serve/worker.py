"""One computation at a time, a bounded number of requests that wait for it, and a limit on their time."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from samtune.serve.gate import RETRY, ApiError

T = TypeVar("T")


class Worker:
    """A thread that computes, and the queue before it. All methods belong to one event loop.

    Args:
        waiting: requests that may hold a place beside the one that is computed.
        seconds: from asking for a turn to the result.
    """

    def __init__(self, *, waiting: int, seconds: float) -> None:
        self.seconds = seconds
        self._free = waiting + 1
        self._turn = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samtune")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place from before the body is read: waiting bodies take memory too.

        Raises:
            ApiError: 503 when all are taken.
        """
        if self._free == 0:
            raise ApiError(503, "busy", "All places are taken. Try again.", headers=RETRY)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def run(self, job: Callable[[], T]) -> T:
        """Runs a job in the thread when its turn comes.

        A job can't be stopped: after a timeout it runs to its end, and only then is it the next one's turn.

        Raises:
            ApiError: 504 after `seconds`.
        """
        try:
            async with asyncio.timeout(self.seconds):
                await self._turn.acquire()
                running = asyncio.get_running_loop().run_in_executor(self._thread, job)
                running.add_done_callback(self._done)
                return await asyncio.shield(running)
        except TimeoutError as err:
            message = f"No result within {self.seconds:g} seconds. Send a smaller picture, or try again."
            raise ApiError(504, "timeout", message) from err

    def close(self) -> None:
        """Waits for the running job, if there is one."""
        self._thread.shutdown(cancel_futures=True)

    def _done(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # seen here, so that one nobody waits for is not reported as forgotten
        self._turn.release()
