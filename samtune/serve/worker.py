"""One computation at a time, a bounded number of requests that come in or wait for it, and limits on their time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from samtune.serve.gate import ApiError, busy
from samtune.serve.places import Place, Places

T = TypeVar("T")


class Worker:
    """A thread that computes, and the queue before it. All methods belong to one event loop.

    Args:
        waiting: requests that may hold a place beside the one that is computed.
        seconds: for receiving a request, and again from asking for a turn to the result.
        interrupt: shortens the running job, if it can.
    """

    def __init__(self, *, waiting: int, seconds: float, interrupt: Callable[[], None]) -> None:
        self.seconds, self.interrupt = seconds, interrupt
        self._places = Places(waiting + 1)
        self._turn = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samtune")

    def prepare(self, job: Callable[[], None]) -> None:
        """Runs a job before all others."""
        self._thread.submit(job)

    @contextmanager
    def place(self, client: str) -> Iterator[Place]:
        """Holds a place from before the body is read: waiting bodies take memory too.

        Raises:
            ApiError: 503 when all are taken, and none by an upload that takes long.
        """
        place = self._places.take(client)
        if place is None:
            raise busy()
        try:
            yield place
        finally:
            self._places.free(place)

    async def receive(self, place: Place, upload: Awaitable[T]) -> T:
        """Waits for an upload, which gives way when it takes long and others need its place.

        Raises:
            ApiError: 408 after `seconds`, or when it has to give way.
        """
        try:
            async with asyncio.timeout(self.seconds) as limit:
                now = asyncio.get_running_loop().time
                place.leave = lambda: limit.reschedule(now())
                return await upload
        except TimeoutError as err:
            message = f"A request has {self.seconds:g} seconds to come in, and fewer when others wait. Try again."
            raise ApiError(408, "slow_upload", message) from err
        finally:
            place.leave = None

    async def run(self, job: Callable[[], T]) -> T:
        """Runs a job in the thread when its turn comes.

        After a timeout a job is interrupted, and it is the next one's turn when it has really ended.

        Raises:
            ApiError: 504 after `seconds`.
        """
        running: asyncio.Future[T] | None = None
        try:
            async with asyncio.timeout(self.seconds):
                await self._turn.acquire()
                running = asyncio.get_running_loop().run_in_executor(self._thread, job)
                running.add_done_callback(self._done)
                return await asyncio.shield(running)
        except TimeoutError as err:
            if running is not None:
                self.interrupt()
            message = f"No result within {self.seconds:g} seconds. Send a smaller picture, or try again."
            raise ApiError(504, "timeout", message) from err

    def close(self) -> None:
        """Lets no further job begin; one that runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # seen here, so that one nobody waits for is not reported as forgotten
        self._turn.release()
