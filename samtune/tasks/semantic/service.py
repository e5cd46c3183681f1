"""Answers requests with the class of every pixel, or with the mask of a prompted object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.formats.shapes import encode_rle
from samtune.tasks.prompt_form import MEDIA_TYPES, PAGE, PROMPT_FIELDS, TOLD, WARNINGS, answer_prompt
from samtune.tasks.semantic.outputs import palette_png, regions
from samtune.tasks.semantic.predict import MapPredictor
from samtune.tasks.service import Answer, Service
from samtune.types import ImageArray


class MapService(Service):
    """Answers with a palette PNG, or JSON with the run lengths of each class; with a prompt, as a model of masks."""

    fields = PROMPT_FIELDS
    media_types = MEDIA_TYPES
    told = (
        "Without box and points, format=png (if it is not given): the values of the classes, with a palette; "
        "format=json: size, and of each class its name, value, score, area, bbox and COCO's compressed RLE. "
        "With them: " + TOLD
    )
    page = PAGE

    def __init__(self, predictor: MapPredictor) -> None:
        self.predictor = predictor
        self.pixels = predictor.info.pixels

    @classmethod
    def from_file(cls, path: Path, *, device: str) -> Self:
        return cls(MapPredictor.from_file(path, device=device))

    def about(self) -> dict[str, Any]:
        info = self.predictor.info
        return {
            **{key: getattr(info, key) for key in ("task", "model", "image_size", "channels", "range", "tiles")},
            "prompt": "none",
            "classes": [
                {"name": name, "value": value, "colour": colour}
                for name, value, colour in zip(
                    info.classes, info.values, distinct_colours(len(info.classes)), strict=True
                )
            ],
            "base_hash": info.base_hash,
            "parameters": sum(p.numel() for p in self.predictor.model.parameters()),
        }

    def answer(self, image_hwc_uint8: ImageArray, values: Mapping[str, Any], warnings: list[str]) -> Answer:
        if values.get("box") is not None or values.get("points") is not None or values.get("labels") is not None:
            model, tiles = self.predictor.model, self.predictor.info.tiling
            return answer_prompt(model, image_hwc_uint8, values, warnings, tiles=tiles)
        found, table = self.predictor.predict(image_hwc_uint8), self.predictor.table
        if values.get("format") != "json":
            headers = {"X-Samtune-Kind": "classes", "X-Samtune-Score": f"{float(np.mean(found.confidence)):.6f}"}
            headers |= {WARNINGS: " | ".join(warnings)} if warnings else {}
            return Answer(palette_png(found.places, table), "image/png", headers)
        classes = []
        for place, mask, score in regions(found):
            rle, area, bbox = encode_rle(mask)
            named = {"class": table.names[place], "value": table.values[place]}
            classes.append({**named, "score": score, "area": area, "bbox": bbox, **rle})
        return Answer.of_json({"size": list(found.places.shape), "classes": classes, "warnings": warnings})
