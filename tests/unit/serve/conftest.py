"""A tiny model behind the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from serve_helpers import URL, Post

from samtune.files.merged import MergedInfo
from samtune.models.table import build_model
from samtune.serve import Limits, create_app
from samtune.tasks.masks.predict import Predictor


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
