"""What the server asks of a model: which fields its requests have, and its answer to a picture."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from samtune.config.pixels import RGB, Pixels
from samtune.errors import SamtuneError
from samtune.types import ImageArray


class FieldError(SamtuneError):
    """A field of a request that has a wrong form, or does not fit the picture.

    `code` is a fixed word for programs, such as `invalid_box`; the message repeats of a request no more than numbers.
    """

    def __init__(self, code: str, message: str, *, field: str) -> None:
        super().__init__(message)
        self.code, self.field = code, field


@dataclass(frozen=True)
class FormField:
    """A text field of a request, beside the image; `parse` raises `FieldError`, `schema` is of OpenAPI."""

    name: str
    parse: Callable[[str], Any]
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a request gets; `headers` come beside those of every response."""

    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Answer:
        """Returns an answer in JSON, without spaces; NaN and infinity are refused."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return cls(text.encode(), "application/json")


class Service(ABC):
    """A model that answers requests, one picture each; every call stands alone.

    What a request may have and how the page looks belong to the class: both are there before the model is loaded.
    """

    fields: ClassVar[tuple[FormField, ...]]
    """What a request may have beside the image."""
    media_types: ClassVar[tuple[str, ...]]
    """Of the answers."""
    told: ClassVar[str] = ""
    """What an answer holds, for people who write a client."""
    page: ClassVar[Traversable]
    """The template that fills `shell.html` of the server: what asks for an answer and shows it."""

    pixels: Pixels = RGB
    """What the model takes; requests are pictures of 8 bits, grey or RGB, so others are refused."""

    @classmethod
    @abstractmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        """Loads a merged file or bundle of the service's task; raises as `samtune.files.merged.load_merged`."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Returns what `/v1/model` says of the model, as JSON; at least task, model, image_size and parameters."""

    @abstractmethod
    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        """Answers one request.

        Args:
            image_hwc_uint8: (H, W, 3) RGB.
            values: field -> parsed value, of the fields that were sent.
            warnings: what was done to the picture; the answer tells them, with its own.

        Raises:
            FieldError: a field that does not fit the picture, or a picture that does not fit the model.
            NonFiniteError: the model returns NaN or infinity.
        """


def parse_json(text: str, *, field: str) -> Any:
    """Returns the value of a field in JSON, without NaN and infinity, which are none; or raises a `FieldError`."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as err:
        message = "This is no JSON. NaN and Infinity are no JSON either."
        raise FieldError("invalid_json", message, field=field) from err
