"""Answers requests with the objects of a picture, or with the mask of a prompted one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from samtune.tasks.instances.outputs import colour_png, index_png, told
from samtune.tasks.instances.predict import InstancePredictor
from samtune.tasks.prompt_form import MEDIA_TYPES, PAGE, PROMPT_FIELDS, TOLD, WARNINGS, answer_prompt, format_field
from samtune.tasks.service import Answer, Service
from samtune.types import ImageArray

FORMATS = ("png", "json", "colours")


class InstanceService(Service):
    """Answers with an index PNG, JSON with each object, or colours; with a prompt, as a model of masks."""

    fields = (*PROMPT_FIELDS[:-1], format_field(FORMATS))
    media_types = MEDIA_TYPES
    told = (
        "Without box and points, format=png (if it is not given): an index picture of 16 bits, 0 for no object; "
        "format=json: size, and of each object its number, score, area, bbox, colour and COCO's compressed RLE; "
        "format=colours: a PNG with a colour for each object. With them: " + TOLD
    )
    page = PAGE

    def __init__(self, predictor: InstancePredictor) -> None:
        self.predictor = predictor
        self.pixels = predictor.info.pixels

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        return cls(InstancePredictor.from_file(path, device=device))

    def about(self) -> dict[str, Any]:
        info = self.predictor.info
        return {
            **{key: getattr(info, key) for key in ("task", "model", "image_size", "channels", "range", "tiles")},
            "prompt": "none",
            "base_hash": info.base_hash,
            "parameters": sum(p.numel() for p in self.predictor.model.parameters()),
        }

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        if values.get("box") is not None or values.get("points") is not None or values.get("labels") is not None:
            model, tiles = self.predictor.model, self.predictor.info.tiling
            return answer_prompt(model, image_hwc_uint8, values, warnings, tiles=tiles)
        found = self.predictor.predict(image_hwc_uint8)
        if values.get("format") == "json":
            return Answer.of_json({"size": list(found.labels.shape), "objects": told(found), "warnings": warnings})
        score = float(found.scores.mean()) if len(found) else 0.0
        headers = {"X-Samtune-Kind": "objects", "X-Samtune-Count": str(len(found)), "X-Samtune-Score": f"{score:.6f}"}
        headers |= {WARNINGS: " | ".join(warnings)} if warnings else {}
        draw = colour_png if values.get("format") == "colours" else index_png
        return Answer(draw(found.labels), "image/png", headers)
