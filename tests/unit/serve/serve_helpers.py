"""Pictures to send, and what every answer has to look like."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import FastAPI
from httpx import Response
from PIL import Image

from samtune.serve.app import create_app
from samtune.serve.server import Server, _listen, _server
from samtune.tasks.service import Service

URL = "http://127.0.0.1"
Post = Callable[..., Response]
COLOURS: dict[str, Any] = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


def app_of(service: Service, **options: Any) -> FastAPI:
    return create_app(type(service), service, **options)


def picture(mode: str = "RGB", size: tuple[int, int] = (80, 50), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image | None = None, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    (image or picture()).save(file, format=format, **options)
    return file.getvalue()


def error_of(response: Response) -> dict[str, Any]:
    """Returns the envelope's content after checking its shape."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["request_id"] == response.headers["X-Request-Id"]
    assert error["message"].endswith(".") and "/" not in error["message"].replace("multipart/form-data", "")
    return error


def many_scans(count: int, size: int = 64) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("RGB", (size, size)), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * count + data[end:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(top: int, width: int = 32, height: int = 16) -> bytes:
    """A PNG of 16 bits per colour, which Pillow itself does not write; its values run from 0 to `top`."""
    values = np.linspace(0, top, width * height * 3).astype(">u2").reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@contextmanager
def running(app: FastAPI, connections: int = 100) -> Iterator[tuple[Server, tuple[str, int]]]:
    """Runs a real server in a thread; yields it with its address, and ends it."""
    server = _server(app, connections)
    with _listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield server, address
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
