"""The one shape of every error: `{"error": {"code", "message", "field", "request_id"}}`.

A message never repeats what the client sent beyond its numbers, and never shows a path of the server.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

Headers = Mapping[str, str]  # headers of a response
RETRY = {"Retry-After": "2"}
"""Seconds a client should wait when the server is loading, busy or short of memory."""

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class ApiError(Exception):
    """An answer other than 200: `code` is a fixed word for programs, `message` is for people, `field` is at fault."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, headers: Headers | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = dict(headers or {})

    @classmethod
    def of_status(cls, status: int, headers: Headers | None = None) -> ApiError:
        """Words the errors that the router raises: no such route, a wrong method."""
        messages = {404: "There is no such address.", 405: "This address doesn't take this method."}
        message = messages.get(status, "The request can't be read.")
        return cls(status, _CODES.get(status, "bad_request"), message, headers=headers)

    def response(self, request_id: str) -> JSONResponse:
        """Returns the answer in the envelope."""
        error = {"code": self.code, "message": self.message, "field": self.field, "request_id": request_id}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)
