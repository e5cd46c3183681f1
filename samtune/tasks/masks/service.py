"""Answers requests with masks, of a model that was tuned for one object per prompt or picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from samtune.tasks.masks.predict import Predictor, other_prompt
from samtune.tasks.prompt_form import MEDIA_TYPES, PAGE, PROMPT_FIELDS, TOLD, answer_prompt
from samtune.tasks.service import Answer, Service
from samtune.types import ImageArray


class MaskService(Service):
    """Answers with the mask of the prompted object, or of the foreground."""

    fields = PROMPT_FIELDS
    media_types = MEDIA_TYPES
    told = TOLD
    page = PAGE

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.pixels = predictor.info.pixels

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        return cls(Predictor.from_file(path, device=device))

    def about(self) -> dict[str, Any]:
        info = self.predictor.info
        told = (
            "task",
            "model",
            "image_size",
            "channels",
            "range",
            "tiles",
            "prompt",
            "prompts",
            "threshold",
            "base_hash",
        )
        parameters = sum(p.numel() for p in self.predictor.model.parameters())
        return {**{name: getattr(info, name) for name in told}, "parameters": parameters}

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        box, points = values.get("box") is not None, values.get("points") is not None
        advice = other_prompt(self.predictor, box=box, points=points)
        model, tiles = self.predictor.model, self.predictor.info.tiling
        return answer_prompt(model, image_hwc_uint8, values, warnings, tiles=tiles, advice=advice)
