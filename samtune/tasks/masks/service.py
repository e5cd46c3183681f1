"""Answers requests with masks: fields for prompts, PNG or JSON with COCO's compressed RLE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samtune.tasks.masks.predict import Predictor
from samtune.tasks.service import Answer, FormField, Service
from samtune.types import ImageArray


class MaskService(Service):
    """Answers with the mask of the prompted object, or of the foreground.

    Args:
        predictor: the model.
    """

    fields: tuple[FormField, ...] = ()
    media_types = ("image/png", "application/json")
    page = "masks.html"

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def about(self) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        raise NotImplementedError
