"""Reads the multipart form of a prediction, within limits, and checks its fields."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from samtune.serve.errors import ApiError

FIELDS = ("image", "box", "points", "labels", "format")
FORMATS = ("png", "json")
MAX_COORDINATE = 1e9
_FIELD_BYTES = 1 << 18


@dataclass(frozen=True)
class Limits:
    """How much one client, and all together, may ask for.

    Attributes:
        body_bytes: of a request.
        pixels: of an image.
        points: of a prompt.
        waiting: requests that may wait for their turn, beside the one that is computed.
        seconds: for receiving a request, and again for its turn and the computation.
    """

    body_bytes: int = 20_000_000
    pixels: int = 40_000_000
    points: int = 64
    waiting: int = 16
    seconds: float = 60.0


@dataclass(frozen=True)
class Upload:
    """A checked form.

    Attributes:
        data: the bytes of the image file; its name is dropped.
        box: x0, y0, x1, y1 in pixels, or None.
        points: pairs of x and y, or None.
        labels: one per point, or None.
        format: "png" or "json".
    """

    data: bytes
    box: list[float] | None
    points: list[list[float]] | None
    labels: list[float] | None
    format: str


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Receives and checks a form.

    Raises:
        ApiError: 400 a broken form, 413 too large, 415 no form, 422 a missing, unknown or wrong field.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise ApiError(415, "not_multipart", "Send the image as the part 'image' of multipart/form-data.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    async with aclosing(_limited(request, limits)) as stream:
        parser = MultiPartParser(
            request.headers,
            stream,
            max_files=len(FIELDS),
            max_fields=2 * len(FIELDS),
            max_part_size=_FIELD_BYTES,
        )
        parser.spool_max_size = limits.body_bytes + 1  # in memory: no temporary file to forget
        try:
            form = await parser.parse()
        except MultiPartException as err:
            known = {"Too many": "too_many_parts", "Part exc": "part_too_large", "Missing": "no_boundary"}
            code = next((code for start, code in known.items() if err.message.startswith(start)), "bad_form")
            raise ApiError(400, code, "The multipart form is broken, or has too many parts.") from err
    try:
        return await _checked(form, limits)
    finally:
        await form.close()


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Passes the body on and counts it: a chunked body has no Content-Length to trust."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.body_bytes:
            raise _too_large(limits)
        yield chunk


async def _checked(form: FormData, limits: Limits) -> Upload:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ApiError(422, "unknown_field", f"A field is unknown.{hint} Known: {', '.join(FIELDS)}.", field=None)
        if names.count(name) > 1:
            raise ApiError(422, "repeated_field", "The field is there more than once.", field=name)
    if "image" not in names:
        raise ApiError(422, "missing_image", "The part 'image' is missing.", field="image")
    image = form["image"]
    if isinstance(image, str):
        message = "'image' must be a file, with a file name. Addresses and paths are not fetched."
        raise ApiError(422, "image_is_no_file", message, field="image")
    wanted = _text(form, "format") or "png"
    if wanted not in FORMATS:
        raise ApiError(422, "unknown_format", f"Known: {', '.join(FORMATS)}.", field="format")
    return Upload(
        data=await image.read(),
        box=_row("box", _json(form, "box"), 4),
        points=_points(_json(form, "points"), limits),
        labels=_row("labels", _json(form, "labels"), None),
        format=wanted,
    )


def _points(value: Any, limits: Limits) -> list[list[float]] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise ApiError(422, "invalid_points", "Expected [[x, y], ...].", field="points")
    if len(value) > limits.points:
        raise ApiError(422, "too_many_points", f"At most {limits.points} points.", field="points")
    return [_row("points", pair, 2, f"point {index}: ") or [] for index, pair in enumerate(value)]


def _row(field: str, value: Any, count: int | None, start: str = "") -> list[float] | None:
    """Returns a list of numbers as it is; bool is no number here."""
    if value is None and not start:
        return None
    good = isinstance(value, list) and all(
        type(v) in (int, float) and -MAX_COORDINATE < v < MAX_COORDINATE for v in value
    )
    if not good or (count is not None and len(value) != count):
        wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
        raise ApiError(422, f"invalid_{field}", f"{start}expected {wanted}, all finite.", field=field)
    return list(value)


def _json(form: FormData, field: str) -> Any:
    text = _text(form, field)
    if text is None:
        return None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        message = "This is no JSON. NaN and Infinity are no JSON either."
        raise ApiError(422, "invalid_json", message, field=field) from err


def _text(form: FormData, field: str) -> str | None:
    value = form.get(field)
    if value is None or isinstance(value, str):
        return value
    raise ApiError(422, "field_is_file", "This field must be text, without a file name.", field=field)


def _no_constant(_: str) -> NoReturn:
    raise ValueError


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, "body_too_large", f"A request has at most {limits.body_bytes:,} bytes.")
