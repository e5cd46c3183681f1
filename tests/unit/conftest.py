"""Fixtures that several unit tests share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FileServer:
    """Serves `content` on 127.0.0.1 under any path, and can misbehave.

    Attributes:
        url: address of the file.
        content: what is served.
        ranges: whether `Range` is honoured.
        stop_after: bytes after which the connection is closed, or None.
        status: answer with this error instead, when not 200.
        requests: the `Range` header of each request, or None.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/file.bin"
        self.content = b""
        self.ranges = True
        self.stop_after: int | None = None
        self.status = 200
        self.requests: list[str | None] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if self.status != 200:
            handler.send_error(self.status)
            return
        if start and start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.stop_after])


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    """A running `FileServer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        files = FileServer(http.server_address[1])
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield files
        http.shutdown()
