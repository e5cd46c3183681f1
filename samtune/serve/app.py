"""The application: its routes, and what they need."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from samtune.serve.answer import answer
from samtune.serve.errors import RETRY, ApiError
from samtune.serve.gate import LOOPBACK_HOSTS, Gate
from samtune.serve.upload import FORMATS, Limits, read_upload
from samtune.serve.worker import Worker
from samtune.tasks.masks.predict import Predictor

logger = logging.getLogger(__name__)

_FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, BMP or TIFF."},
        "box": {"type": "string", "description": "JSON [x0, y0, x1, y1] in pixels of the image."},
        "points": {"type": "string", "description": "JSON [[x, y], ...] in pixels of the image."},
        "labels": {"type": "string", "description": "JSON [1, 0, ...]: 1 on the object, 0 off it."},
        "format": {"type": "string", "enum": list(FORMATS), "default": "png"},
    },
}
_PREDICT_API: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
    "responses": {"200": {"description": "The mask", "content": {"image/png": {}, "application/json": {}}}},
}


def create_app(
    source: Predictor | Callable[[], Predictor],
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = LOOPBACK_HOSTS,
    limits: Limits | None = None,
) -> FastAPI:
    """Builds the application.

    Args:
        source: the model, or what loads it; it is loaded in the background while `/readyz` says 503.
        api_key: clients must send it as `Authorization: Bearer KEY`; None for no key.
        hosts: names that the Host header may have; None for any.
        limits: of requests.

    Returns:
        The ASGI application.
    """
    limits = limits or Limits()
    model = _Model(source)
    worker = Worker(waiting=limits.waiting, seconds=limits.seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        model.start()
        yield
        worker.close()

    app = FastAPI(title="samtune", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(ApiError, _api_error)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        text, policy = _page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        model.get()
        return {"status": "ready"}

    @app.get("/v1/model")
    async def about() -> dict[str, Any]:
        return _about(model.get())

    @app.post("/v1/predict", response_class=Response, openapi_extra=_PREDICT_API)
    async def predict(request: Request) -> Response:
        predictor = model.get()
        with worker.place():
            try:
                async with asyncio.timeout(limits.seconds):
                    upload = await read_upload(request, limits)
            except TimeoutError as err:
                raise ApiError(408, "slow_upload", f"No whole request in {limits.seconds:g} seconds.") from err
            return await worker.run(partial(answer, predictor, upload, max_pixels=limits.pixels))

    paths = frozenset(path for route in app.routes if isinstance(path := getattr(route, "path", None), str))
    app.add_middleware(Gate, hosts=hosts, api_key=api_key, paths=paths)
    return app


class _Model:
    """A predictor that may still be loading."""

    def __init__(self, source: Predictor | Callable[[], Predictor]) -> None:
        self._predictor = source if isinstance(source, Predictor) else None
        self._load = None if isinstance(source, Predictor) else source
        self._failed = False

    def start(self) -> None:
        if self._load is not None:
            threading.Thread(target=self._run, daemon=True, name="samtune-load").start()

    def get(self) -> Predictor:
        if self._predictor is not None:
            return self._predictor
        if self._failed:
            raise ApiError(503, "load_failed", "The model can't be loaded. The server's log says why.")
        raise ApiError(503, "loading", "The model is being loaded. Try again.", headers=RETRY)

    def _run(self) -> None:
        assert self._load is not None
        try:
            self._predictor = self._load()
        except Exception as err:
            self._failed = True
            logger.error("the model can't be loaded: %s", err)


def _about(predictor: Predictor) -> dict[str, Any]:
    info = predictor.info
    return {
        "model": info.model,
        "image_size": info.image_size,
        "prompt": info.prompt,
        "threshold": info.threshold,
        "base_hash": info.base_hash,
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
    }


@cache
def _page() -> tuple[str, str]:
    """Returns the page and a policy that lets exactly its own script and style run."""
    text = (files("samtune.serve") / "page" / "page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.state.request_id)


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError.of_status(error.status_code, error.headers).response(request.state.request_id)
