"""What happens around every request: its id, its log line, who may ask, the headers of the answer, and every error.

A message never repeats what the client sent beyond its numbers, and never shows a path of the server.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/", "/docs", "/livez", "/readyz")
"""What answers without an API key: the empty page, how to write a client, and the probes."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Fields = Mapping[str, str]  # headers of an answer
RETRY = {"Retry-After": "2"}
"""Seconds a client should wait when the server is loading, busy or short of memory."""

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(Exception):
    """An answer other than 200: `code` is a fixed word for programs, `message` is for people, `field` is at fault."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, headers: Fields | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = dict(headers or {})

    @classmethod
    def of_status(cls, status: int, headers: Fields | None = None) -> ApiError:
        """Words the errors that the router raises: no such route, a wrong method."""
        messages = {404: "There is no such address.", 405: "This address doesn't take this method."}
        message = messages.get(status, "The request can't be read.")
        return cls(status, _CODES.get(status, "bad_request"), message, headers=headers)

    def response(self, request_id: str) -> JSONResponse:
        """Returns the answer in the envelope."""
        error = {"code": self.code, "message": self.message, "field": self.field, "request_id": request_id}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)


def busy() -> ApiError:
    """Returns what a request gets for which there is no place."""
    return ApiError(503, "busy", "All places are taken. Try again.", headers=RETRY)


def ending() -> ApiError:
    """Returns what a request gets that is cut off by the end of the server."""
    return ApiError(503, "ending", "The server is being stopped. Try again.", headers=RETRY)


class Gate:
    """ASGI middleware, outermost: nothing of a request is read before host and key are checked.

    Args:
        hosts: names that the Host header may have, which stops DNS rebinding; None for any.
        api_key: what `Authorization: Bearer KEY` must hold; None for no key.
        paths: the known paths; others are logged as "?", because a log is no place for a client's text.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str] | None, api_key: str | None, paths: Collection[str]
    ) -> None:
        self.app, self.hosts, self.api_key, self.paths = app, hosts, api_key, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, start, status = uuid.uuid4().hex, time.monotonic(), 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, send_with_headers)
        except ApiError as error:
            await error.response(request_id)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # nobody is left to answer
        except asyncio.CancelledError:
            if not status:
                await ending().response(request_id)(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                failure = ApiError(500, "internal_error", "The server failed. Its log has the request_id.")
                await failure.response(request_id)(scope, receive, send_with_headers)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "?"
            spent = 1000 * (time.monotonic() - start)
            logger.info("%s %s %d %.0f ms %s", scope["method"][:7], path, status, spent, request_id)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            raise ApiError(400, "unknown_host", "The Host header names another server than this one.")
        if self.api_key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            message = "Send the API key of this server as 'Authorization: Bearer KEY'."
            raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def _name(host: str) -> str:
    """Returns a Host header without its port, in lower case; "" when it is none."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(?::[0-9]*)?", host)
    return found[1].lower() if found else ""
