"""Reads the multipart form of a prediction, within limits, and checks its fields."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from samtune.serve.gate import ApiError
from samtune.tasks.service import FormField

_FIELD_BYTES = 1 << 18
_FILES, _TEXTS = 20, 10  # enough to tell what is wrong with a form


@dataclass(frozen=True)
class Limits:
    """How much one client, and all together, may ask for.

    Attributes:
        body_bytes: of a request.
        pixels: of an image.
        waiting: requests that may wait for their turn, beside the one that is computed.
        seconds: for receiving a request, and again for its turn and the computation.
    """

    body_bytes: int = 20_000_000
    pixels: int = 40_000_000
    waiting: int = 16
    seconds: float = 60.0


@dataclass(frozen=True)
class Upload:
    """A checked form: the bytes of the image file, whose name is dropped, and the value of each field that was sent."""

    data: bytes
    values: Mapping[str, Any]


async def read_upload(request: Request, fields: Sequence[FormField], limits: Limits) -> Upload:
    """Receives and checks a form of an image and these fields.

    Raises:
        ApiError: 400 a broken form, 413 too large, 415 no form, 422 a missing, unknown or wrong field.
        FieldError: a field that can't be parsed.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise ApiError(415, "not_multipart", "Send the image as the part 'image' of multipart/form-data.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    async with aclosing(_limited(request, limits)) as stream:
        most = {"max_files": _FILES, "max_fields": _TEXTS, "max_part_size": _FIELD_BYTES}
        parser = MultiPartParser(request.headers, stream, **most)
        parser.spool_max_size = limits.body_bytes + 1  # in memory: no temporary file to forget
        try:
            form = await parser.parse()
        except (MultiPartException, UnicodeError) as err:  # UnicodeError: a charset that no text is in
            known = {"Too many": "too_many_parts", "Part exc": "part_too_large", "Missing": "no_boundary"}
            code = next((code for start, code in known.items() if str(err).startswith(start)), "bad_form")
            raise ApiError(400, code, "The multipart form is broken, or has too many parts.") from err
    try:
        return await _checked(form, fields)
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


async def _checked(form: FormData, fields: Sequence[FormField]) -> Upload:
    names, known = [name for name, _ in form.multi_items()], ["image", *(field.name for field in fields)]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ApiError(422, "unknown_field", f"A field is unknown.{hint} Known: {', '.join(known)}.", field=None)
        if names.count("image") > 1:
            message = f"A request has one picture, and there are {names.count('image')}. Send one request for each."
            raise ApiError(422, "many_images", message, field="image")
        if names.count(name) > 1:
            raise ApiError(422, "repeated_field", "The field is there more than once.", field=name)
    if "image" not in names:
        raise ApiError(422, "missing_image", "The part 'image' is missing.", field="image")
    image = form["image"]
    if isinstance(image, str):
        message = "'image' must be a file, with a file name. Addresses and paths are not fetched."
        raise ApiError(422, "image_is_no_file", message, field="image")
    values = {field.name: field.parse(_text(form, field.name)) for field in fields if field.name in names}
    return Upload(data=await image.read(), values=values)


def _text(form: FormData, field: str) -> str:
    value = form[field]
    if isinstance(value, str):
        return value
    raise ApiError(422, "field_is_file", "This field must be text, without a file name.", field=field)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, "body_too_large", f"A request has at most {limits.body_bytes:,} bytes.")
