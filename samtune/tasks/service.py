"""What the server asks of a model: which fields its requests have, and its answer to a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from samtune.errors import SamtuneError
from samtune.types import ImageArray


class FieldError(SamtuneError):
    """A field of a request that has a wrong form, or does not fit the picture.

    Args:
        code: a fixed word for programs, such as `invalid_box`.
        message: what was wrong and what is allowed; repeats nothing of the request beyond its numbers.
        field: name of the field.
    """

    def __init__(self, code: str, message: str, *, field: str) -> None:
        super().__init__(message)
        self.code, self.field = code, field


@dataclass(frozen=True)
class FormField:
    """A text field of a request, beside the image.

    Attributes:
        name: of the part of the form.
        parse: the text to a value; raises `FieldError`.
        schema: of OpenAPI.
    """

    name: str
    parse: Callable[[str], Any]
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        content: the body.
        media_type: its type, such as `image/png`.
        headers: of the response, beside those of every response.
    """

    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Service(ABC):
    """A model that answers requests, one picture each; every call stands alone.

    Attributes:
        fields: what a request may have beside the image.
        media_types: of its answers.
        page: name of the template of the part of the page that asks for and shows its answers.
    """

    fields: tuple[FormField, ...]
    media_types: tuple[str, ...]
    page: str

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Returns what `/v1/model` says of the model, as JSON."""

    @abstractmethod
    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        """Answers one request.

        Args:
            image_hwc_uint8: (H, W, 3) uint8 RGB.
            values: field -> parsed value, of the fields that were sent.
            warnings: what was done to the picture; the answer tells them, with its own.

        Raises:
            FieldError: a field that does not fit the picture.
            NonFiniteError: the model returns NaN or infinity.
        """
