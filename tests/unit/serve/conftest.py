"""A tiny model behind the API, and pictures to send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from samtune.models import build_model
from samtune.models.merged import MergedInfo
from samtune.predict import Predictor
from samtune.serve import Limits, create_app

URL = "http://127.0.0.1"
Post = Callable[..., Response]


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    torch.manual_seed(0)
    info = MergedInfo(model="sam_tiny", image_size=64, prompt="none", base_hash="ab" * 32)
    return Predictor(build_model("sam_tiny", checkpoint="random", image_size=64), info)


@pytest.fixture(scope="session")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with TestClient(create_app(predictor, limits=Limits(body_bytes=3_000_000)), base_url=URL) as client:
        yield client


@pytest.fixture
def post(client: TestClient) -> Post:
    """Sends a picture, with further form fields."""

    def send(data: bytes, *, name: str = "a.png", **fields: Any) -> Response:
        return client.post("/v1/predict", files={"image": (name, data)}, data=fields)

    return send


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
