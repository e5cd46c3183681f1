"""Answers requests with classes and their probabilities, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samtune.tasks.classes.predict import ClassPredictor
from samtune.tasks.service import Answer, FormField, Service
from samtune.types import ImageArray


class ClassService(Service):
    """Answers with the most probable classes.

    Args:
        predictor: the model.
    """

    fields: tuple[FormField, ...] = ()
    media_types = ("application/json",)
    page = "classes.html"

    def __init__(self, predictor: ClassPredictor) -> None:
        self.predictor = predictor

    def about(self) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        raise NotImplementedError
