"""What holds for a connection outside of its requests: time limits, room for others, and an answer to what is no HTTP.

uvicorn itself waits for ever for the rest of a request's head, and for a client that does not read its answer.
"""

import asyncio
import errno
import logging
import resource
import time
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from samtune.serve.gate import SECURITY_HEADERS, ApiError, busy
from samtune.serve.places import Places

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""For the head of the first request of a connection."""
READ_SECONDS = 60.0
"""For reading an answer and sending the next head."""
BACKLOG = 32
"""Connections that are accepted at once; each one takes an open file before it can be refused."""
_OWN_FILES = 48 + BACKLOG // 2  # what the process itself opens, and a reserve
_CONNECTIONS = 8, 512  # at least, at most
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SILENT_SECONDS = 60.0  # between two lines on it


def most_connections() -> int:
    """Returns how many connections leave files to open for everything else, by the limit of this process."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    least, most = _CONNECTIONS
    return most if files == resource.RLIM_INFINITY else min(max(files - _OWN_FILES, least), most)


class Connection(H11Protocol):
    """Speaks HTTP/1.1 with one client; made by uvicorn, with `places` shared by all of them.

    A connection is idle while no request of it is being answered. Idle ones have a limit on their time, and give way
    to new ones when there are too many.
    """

    def __init__(self, *args: Any, places: Places, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places
        self._limit: asyncio.TimerHandle | None = None  # on being idle
        self._unread: asyncio.TimerHandle | None = None  # on not reading
        self._idle = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._place = self._places.take(self.client[0] if self.client else "")
        if self._place is None:
            self._refuse(busy())
        else:
            self._rest(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._limit)
        _cancel(self._unread)
        if self._place is not None:
            self._places.free(self._place)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "bad_http", "This is no request in HTTP/1.1."))

    def _look(self) -> None:
        """Sees whether a request has begun or ended."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._idle:
            self._rest(READ_SECONDS)
        elif not idle and self._place is not None:
            _cancel(self._limit)
            self._place.leave = None
        self._idle = idle

    def _rest(self, seconds: float) -> None:
        _cancel(self._limit)
        self._limit = self.loop.call_later(seconds, self._late)
        if self._place is not None:
            self._place.leave, self._place.since = self.transport.abort, time.monotonic()

    def _late(self) -> None:
        if self.cycle is None:
            self._refuse(ApiError(408, "slow_request", f"The head of a request has {HEAD_SECONDS:g} seconds to come."))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answers what never becomes a request, and closes the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            request_id = uuid.uuid4().hex
            response = error.response(request_id)
            response.headers.update({**SECURITY_HEADERS, "X-Request-Id": request_id, "Connection": "close"})
            head = h11.Response(status_code=error.status, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            logger.info("? ? %d %s", error.status, request_id)
        self.transport.close()
        self.loop.call_later(HEAD_SECONDS, self.transport.abort)  # where it is not read, closing takes for ever


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Quiet:
    """Handles what goes wrong in an event loop: a lack of open files is said once a minute, not at every attempt."""

    def __init__(self) -> None:
        self._said = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_ROOM):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said > _SILENT_SECONDS:
            self._said = time.monotonic()
            logger.warning("connections wait: %s. Allow more open files (ulimit -n).", error.strerror)
