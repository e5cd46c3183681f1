"""How is a prompt asked for over HTTP, and its mask answered: PNG, or JSON with COCO's compressed RLE?"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from samtune.data.formats.shapes import encode_rle
from samtune.models.backbone import Backbone
from samtune.tasks.prompted import png_of, predict_prompted
from samtune.tasks.prompts import PromptError, checked_boxes, clip_boxes
from samtune.tasks.service import Answer, FieldError, FormField, parse_json
from samtune.types import ImageArray, Prediction, Tiles

FORMATS = ("png", "json")
MAX_POINTS = 64
WARNINGS = "X-Samtune-Warnings"
"""Of an answer that is no JSON: what was done to the picture, and what may be wrong with the prompt."""
_MAX_COORDINATE = 1e9


def _row(value: Any, *, field: str, count: int | None = None, start: str = "") -> list[float]:
    """Returns a list of numbers as it is; bool is no number here."""
    good = isinstance(value, list) and all(
        type(v) in (int, float) and -_MAX_COORDINATE < v < _MAX_COORDINATE for v in value
    )
    if not good or (count is not None and len(value) != count):
        wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
        raise FieldError(f"invalid_{field}", f"{start}expected {wanted}, all finite.", field=field)
    return list(value)


def _numbers(text: str, *, field: str, count: int | None = None) -> list[float] | None:
    value = parse_json(text, field=field)
    return None if value is None else _row(value, field=field, count=count)


_box, _labels = partial(_numbers, field="box", count=4), partial(_numbers, field="labels")


def _points(text: str) -> list[list[float]] | None:
    value = parse_json(text, field="points")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise FieldError("invalid_points", "Expected [[x, y], ...].", field="points")
    if len(value) > MAX_POINTS:
        raise FieldError("too_many_points", f"At most {MAX_POINTS} points.", field="points")
    return [_row(pair, field="points", count=2, start=f"point {index}: ") for index, pair in enumerate(value)]


def format_field(formats: Sequence[str]) -> FormField:
    """Returns the field of the form of an answer, one of `formats`, of which the first is the default."""

    def parse(text: str) -> str:
        if text and text not in formats:
            raise FieldError("unknown_format", f"Known: {', '.join(formats)}.", field="format")
        return text or formats[0]

    schema = {"type": "string", "description": "Of the answer.", "example": "json"}
    return FormField("format", parse, schema | {"enum": list(formats), "default": formats[0]})


def _described(text: str, example: str) -> dict[str, Any]:
    return {"type": "string", "description": text, "example": example}


PROMPT_FIELDS = (
    FormField("box", _box, _described("JSON [x0, y0, x1, y1] in pixels of the image.", "[10, 20, 200, 180]")),
    FormField("points", _points, _described("JSON [[x, y], ...] in pixels of the image.", "[[90, 80], [15, 30]]")),
    FormField("labels", _labels, _described("JSON [1, 0, ...]: 1 on the object, 0 off it.", "[1, 0]")),
    format_field(FORMATS),
)
TOLD = (
    "format=png (if it is not given): the mask at the size of the picture, 0 and 255; the headers X-Samtune-Score "
    "and X-Samtune-Warnings have the confidence and what was done to the request. format=json: size and counts "
    "(COCO's compressed RLE, for pycocotools), score, area in pixels, bbox (x, y, width, height) and warnings."
)
MEDIA_TYPES = ("image/png", "application/json")
PAGE = files("samtune.tasks") / "prompted.html"


def answer_prompt(
    model: Backbone,
    image_hwc_uint8: ImageArray,
    values: Mapping[str, Any],
    warnings: list[str],
    *,
    tiles: Tiles | None = None,
    advice: str | None = None,
) -> Answer:
    """Answers with the mask of the prompted object, or of the foreground.

    Args:
        values: of `PROMPT_FIELDS`, those that were sent.
        warnings: to tell with the answer, before `advice`.
        tiles: how the model sees images; None for as a whole.

    Raises:
        FieldError: a prompt of a wrong shape, or outside the image.
        NonFiniteError: the model returns NaN or infinity.
    """
    box = values.get("box")
    try:
        prompt: Any = {"boxes_xyxy": box, "points_xy": values.get("points"), "labels": values.get("labels")}
        prediction = predict_prompted(model, image_hwc_uint8, **prompt, tiles=tiles)
    except PromptError as err:
        raise FieldError(f"invalid_{err.field}", str(err), field=err.field) from err
    boxes = checked_boxes(box)
    cut = boxes is not None and (clip_boxes(boxes, image_hwc_uint8.shape[:2]) != boxes).any()
    form = _json_answer if values.get("format") == "json" else _png_answer
    own = [*(["the box was cut to the image"] if cut else []), *([advice] if advice else [])]
    return form(prediction, [*warnings, *own])


def _png_answer(prediction: Prediction, warnings: list[str]) -> Answer:
    headers = {"X-Samtune-Score": f"{prediction.score:.6f}"}
    if warnings:
        headers[WARNINGS] = " | ".join(warnings)
    return Answer(png_of(prediction.mask), "image/png", headers)


def _json_answer(prediction: Prediction, warnings: list[str]) -> Answer:
    rle, area, bbox = encode_rle(prediction.mask)
    return Answer.of_json({**rle, "score": prediction.score, "area": area, "bbox": bbox, "warnings": warnings})
