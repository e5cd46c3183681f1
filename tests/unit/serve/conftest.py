"""Tiny models behind the API, one of each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from serve_helpers import COLOURS, URL, Post, app_of

from samtune.serve.upload import Limits
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.predict import ClassPredictor, ClassService
from samtune.tasks.masks.description import MaskDescription
from samtune.tasks.masks.predict import Predictor
from samtune.tasks.masks.service import MaskService
from samtune.tasks.service import Service

NAMES = ("ant", "bee", "cow", "dog", "eel", "<b>fox</b>")


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    torch.manual_seed(0)
    info = MaskDescription(model="sam_tiny", image_size=64, prompt="none", base_hash="ab" * 32, **COLOURS)
    return Predictor(info.build().eval(), info)


@pytest.fixture(scope="session")
def classifier() -> ClassPredictor:
    torch.manual_seed(0)
    info = ClassDescription(
        model="vit_mini",
        image_size=64,
        classes=NAMES,
        resize="squash",
        interpolation="bilinear",
        base_hash="cd" * 32,
        **COLOURS,
    )
    return ClassPredictor(info.build().eval(), info)


@pytest.fixture(scope="session")
def masks(predictor: Predictor) -> MaskService:
    return MaskService(predictor)


@pytest.fixture(scope="session")
def classes(classifier: ClassPredictor) -> ClassService:
    return ClassService(classifier)


@pytest.fixture(scope="session", params=["masks", "classes"])
def service(request: pytest.FixtureRequest, masks: MaskService, classes: ClassService) -> Service:
    """The service of each task, for what holds for all of them."""
    return {"masks": masks, "classes": classes}[request.param]


def _client(service: Service) -> Iterator[TestClient]:
    with TestClient(app_of(service, limits=Limits(body_bytes=3_000_000)), base_url=URL) as client:
        yield client


@pytest.fixture(scope="session")
def client(masks: MaskService) -> Iterator[TestClient]:
    yield from _client(masks)


@pytest.fixture(scope="session")
def any_client(service: Service) -> Iterator[TestClient]:
    yield from _client(service)


def _post(client: TestClient) -> Post:
    def send(data: bytes, *, name: str = "a.png", **fields: Any) -> Response:
        return client.post("/v1/predict", files={"image": (name, data)}, data=fields)

    return send


@pytest.fixture
def post(client: TestClient) -> Post:
    """Sends a picture for its mask, with further form fields."""
    return _post(client)


@pytest.fixture
def post_any(any_client: TestClient) -> Post:
    """Sends a picture to each task."""
    return _post(any_client)


@pytest.fixture
def classify(classes: ClassService) -> Iterator[Post]:
    """Sends a picture for its class."""
    for client in _client(classes):
        yield _post(client)
