"""Answers requests with classes and their probabilities, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from samtune.errors import DataError
from samtune.tasks.classes.predict import ClassPredictor
from samtune.tasks.service import Answer, FieldError, Service
from samtune.types import ImageArray


class ClassService(Service):
    """Answers with the most probable classes.

    Args:
        predictor: the model.
    """

    fields = ()
    media_types = ("application/json",)
    page = files("samtune.tasks.classes") / "page.html"

    def __init__(self, predictor: ClassPredictor) -> None:
        self.predictor = predictor

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        return cls(ClassPredictor.from_file(path, device=device))

    def about(self) -> dict[str, Any]:
        info = self.predictor.info
        return {
            "task": info.task,
            "model": info.model,
            "image_size": info.image_size,
            "resize": info.resize,
            "classes": list(info.classes),
            "base_hash": info.base_hash,
            "parameters": sum(p.numel() for p in self.predictor.model.parameters()),
        }

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        try:
            prediction = self.predictor.predict(image_hwc_uint8)
        except DataError as err:
            raise FieldError("image_size", f"{err}.", field="image") from err
        ranking = [{"class": name, "probability": probability} for name, probability in prediction.ranking]
        return Answer.of_json({**ranking[0], "ranking": ranking, "warnings": warnings})
