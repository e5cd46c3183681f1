"""Pictures to send, and what every answer has to look like."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import FastAPI
from httpx import Response
from PIL import Image

from samtune.serve.app import create_app
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
