"""The application: its routes, and what they need."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from samtune.serve.answer import answer
from samtune.serve.connection import Quiet
from samtune.serve.decoder import Decoder
from samtune.serve.gate import LOOPBACK_HOSTS, RETRY, ApiError, Gate
from samtune.serve.pages import render_docs, render_page
from samtune.serve.upload import Limits, read_upload
from samtune.serve.worker import Worker
from samtune.tasks.service import FieldError, Service

logger = logging.getLogger(__name__)


def create_app(
    kind: type[Service],
    source: Service | Callable[[], Service],
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = LOOPBACK_HOSTS,
    limits: Limits | None = None,
) -> FastAPI:
    """Builds the ASGI application.

    Args:
        kind: the class of the service, which has the form and the page: both are there before the model is.
        source: the service, or what loads it; it is loaded in the background while `/readyz` says 503.
        api_key: clients must send it as `Authorization: Bearer KEY`; None for no key.
        hosts: names that the Host header may have; None for any.
    """
    limits, model, decoder = limits or Limits(), _Model(source), Decoder()
    worker = Worker(waiting=limits.waiting, seconds=limits.seconds, interrupt=decoder.interrupt)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(Quiet())
        model.start()
        worker.prepare(decoder.start)
        yield
        decoder.close()
        worker.close()

    app = FastAPI(title="samtune", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    for wrong in (HTTPException, ApiError, FieldError):
        app.add_exception_handler(wrong, _as_answer)
    _add_pages(app, kind, model)

    @app.post("/v1/predict", response_class=Response, openapi_extra=_described(kind))
    async def predict(request: Request) -> Response:
        service = model.get()
        with worker.place(request.client.host if request.client else "") as place:
            upload = await worker.receive(place, read_upload(request, kind.fields, limits))
            return await worker.run(partial(answer, service, decoder, upload, max_pixels=limits.pixels))

    paths = frozenset(path for route in app.routes if isinstance(path := getattr(route, "path", None), str))
    app.add_middleware(Gate, hosts=hosts, api_key=api_key, paths=paths)
    return app


class _Model:
    """A service that may still be loading."""

    def __init__(self, source: Service | Callable[[], Service]) -> None:
        self._service = source if isinstance(source, Service) else None
        self._load = None if isinstance(source, Service) else source
        self._failed = False

    def start(self) -> None:
        if self._load is not None:
            # No daemon: the interpreter must not end within torch, which aborts the process.
            threading.Thread(target=self._run, daemon=False, name="samtune-load").start()

    def get(self) -> Service:
        if self._service is not None:
            return self._service
        if self._failed:
            raise ApiError(503, "load_failed", "The model can't be loaded. The server's log says why.")
        raise ApiError(503, "loading", "The model is being loaded. Try again.", headers=RETRY)

    def _run(self) -> None:
        assert self._load is not None
        try:
            self._service = self._load()
        except Exception as err:
            self._failed = True
            logger.error("the model can't be loaded: %s", err)


def _add_pages(app: FastAPI, kind: type[Service], model: _Model) -> None:
    """Adds what is asked without a picture: the pages, the probes, and what the model says of itself."""
    html, policy = render_page(kind.page)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs(request: Request) -> Response:
        text, policy = render_docs(kind, request.headers.get("host", ""))
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
        return model.get().about()


def _described(kind: type[Service]) -> dict[str, Any]:
    """Returns what OpenAPI says of a prediction beside its address."""
    image = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, BMP or TIFF."}
    fields = {"image": image} | {field.name: dict(field.schema) for field in kind.fields}
    form = {"type": "object", "required": ["image"], "additionalProperties": False, "properties": fields}
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    answers: dict[str, Any] = {media_type: {} for media_type in kind.media_types}
    return {"requestBody": body, "responses": {"200": {"description": "The answer", "content": answers}}}


async def _as_answer(request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            found = error
        case FieldError():
            found = ApiError(422, error.code, str(error), field=error.field)
        case HTTPException():
            found = ApiError.of_status(error.status_code, error.headers)
        case _:
            raise error
    return found.response(request.state.request_id)
