"""Fixtures that several unit tests share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test sees."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes `names` as noise images with one rectangle each, of 40 x 30 pixels."""

    def make(names: list[str], folder: str = "data", *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
        root = tmp_path / folder
        for sub in ("images", "masks"):
            (root / sub).mkdir(parents=True, exist_ok=True)
        width, height = size
        for i, name in enumerate(names):
            rng = np.random.default_rng((seed, i))
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # coarse, so that difference hashes differ
            Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(root / "images" / f"{name}.png")
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[5 : 5 + height // 3, 4 + i % 5 : 4 + i % 5 + width // 3] = 255
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        return root

    return make
