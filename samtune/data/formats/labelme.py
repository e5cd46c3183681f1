"""LabelMe: a JSON file for each picture; an object of several polygons is written as shapes of one `group_id`."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtune.base.disk import write_json
from samtune.data.channels.tiff import picture_size
from samtune.data.formats.annotations import Annotated, Annotation, Annotations, Reading, numbered
from samtune.data.formats.shapes import Region, crop_of, ellipse, place_crop, polygon, rectangle, unpack_png
from samtune.errors import DataError

_KINDS = "polygon, rectangle, circle and mask"


def read_labelme(place: Path) -> Annotations:
    """Reads the files of a folder; each names its picture, which is beside it or in a folder beside."""
    reading, names = Reading(place), dict[str, None]()
    for file in labelme_files(place):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            shapes, name = [dict(shape) for shape in content["shapes"]], str(content["imagePath"]).replace("\\", "/")
            size = content.get("imageWidth"), content.get("imageHeight")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            reading.problems.append(f"{file}: not a file of LabelMe ({reason}); save it again")
            continue
        picture = reading.picture(file, name, Path(name).name)
        if picture is None:
            continue
        try:
            width, height = size if type(size[0]) is int and type(size[1]) is int else picture_size(picture)
        except DataError as error:
            reading.problems.append(str(error))
            continue
        image = reading.image(picture, file, width, height)
        names |= dict.fromkeys(_shapes(reading, image, shapes))
    return reading.done(numbered(names), place)


def write_labelme(annotations: Annotations, folder: Path) -> Path:
    """Writes a file for each picture; polygons stay polygons, and masks are shapes of kind mask."""
    for stem, image in annotations.images.items():
        shapes = [shape for number, item in enumerate(image.objects) for shape in _written(image, item, number)]
        content: dict[str, Any] = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image.picture.name}
        content |= {"imageData": None, "imageHeight": image.height, "imageWidth": image.width}
        write_json(folder / f"{stem}.json", content)
    return folder


def labelme_files(place: Path) -> list[Path]:
    """Returns the files of a folder, told by the first of them; those of a run or another program are none."""
    found = sorted(place.glob("*.json")) or sorted((place / "annotations").glob("*.json"))
    first = found[0].read_bytes() if found else b""
    return found if b'"shapes"' in first and b'"imagePath"' in first else []


def _shapes(reading: Reading, image: Annotated, shapes: list[dict[str, Any]]) -> list[str]:
    """Adds the objects of a picture; returns the names of their categories."""
    names = []
    for number, shape in enumerate(shapes, start=1):
        name, kind = shape.get("label"), shape.get("shape_type") or "polygon"
        if not isinstance(name, str) or not name:
            reading.complain(image.source, f"shape {number}", "no label; name it")
            continue
        names.append(name)
        reading.boxes += kind == "rectangle"
        region = partial(_region, kind, shape, image)
        reading.add(image, f"shape {number} ({name})", name, region, score=_score(shape))
    return names


def _region(kind: str, shape: Mapping[str, Any], image: Annotated) -> Region:
    points = shape["points"]
    if kind == "polygon":
        return (polygon(points),)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return (rectangle(left, top, right, bottom),)
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return (ellipse(x, y, radius, radius),)
    if kind == "mask":
        left, top = (int(value) for value in points[0])
        return place_crop(unpack_png(shape["mask"], "L") > 0, left, top, image.height, image.width)
    raise ValueError(f"a shape of kind {kind!r}, which covers no pixels; {_KINDS} do")


def _score(shape: Mapping[str, Any]) -> float | None:
    """Returns the score that `_written` put beside a shape."""
    text = str(shape.get("description") or "")
    return float(text.removeprefix("score ")) if text.startswith("score ") and _is_number(text[6:]) else None


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _written(image: Annotated, item: Annotation, number: int) -> list[dict[str, Any]]:
    """Returns the shapes of an object; several of them share a group."""
    common: dict[str, Any] = {"label": item.category, "group_id": None, "flags": {}}
    common["description"] = "" if item.score is None else f"score {item.score}"
    if isinstance(item.region, tuple):
        common["group_id"] = number if len(item.region) > 1 else None
        each = [points.round(4).tolist() for points in item.region]
        return [{**common, "shape_type": "polygon", "points": points} for points in each]
    crop, left, top = crop_of(image.mask(item))
    file = BytesIO()
    Image.fromarray(crop.astype(np.uint8)).save(file, format="PNG")
    corners = [[left, top], [left + crop.shape[1] - 1, top + crop.shape[0] - 1]]
    packed = base64.b64encode(file.getvalue()).decode("ascii")
    return [{**common, "shape_type": "mask", "points": corners, "mask": packed}]
