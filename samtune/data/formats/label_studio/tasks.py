"""Label Studio's JSON: a list of tasks; polygons, boxes and ellipses in percent of the picture, brushes and bitmasks.

A bitmask is a PNG in base64, black on transparent (labelstud.io/tags/bitmasklabels); as of a brush, a pixel is
painted whose alpha is > 127. Of several annotations of a task the first that was not cancelled is read; a task without
any is not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from samtune.base.disk import write_text
from samtune.data.channels.tiff import picture_size
from samtune.data.formats.annotations import Annotated, Annotation, Annotations, Reading, numbered, the_file
from samtune.data.formats.coco import MOST_FILES, find_annotations
from samtune.data.formats.label_studio.brush import pack_brush, unpack_brush
from samtune.data.formats.shapes import Region, ellipse, encode_rle, polygon, rectangle, turned, unpack_png
from samtune.data.pictures import SUFFIXES
from samtune.errors import DataError

if TYPE_CHECKING:
    from samtune.types import MaskArray

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_SHAPES = ("polygon", "brush", "bitmask", "rectangle", "ellipse")
_BITMASK = "data:image/png;base64,"
_OTHERS = ("magicwand", "keypoint", "vector", "videorectangle", "videovector")  # refused, not left out


def read_label_studio(place: Path) -> Annotations:
    """Reads the file of a folder, or one that is given; pictures are beside or below it, by their names alone.

    Raises:
        DataError: no such file or several, or another file.
    """
    file = the_file(label_studio_files(place), place, "Label Studio (JSON, not JSON_MIN)")
    try:
        tasks = [dict(task) for task in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file}: not a file of Label Studio ({reason}); export it again as JSON") from error
    reading, names = Reading(file.parent), dict[str, None]()
    drawn = {number: _results(task, "annotations") for number, task in enumerate(tasks)}
    guessed = all(results is None for results in drawn.values())
    if guessed:
        drawn = {number: _results(task, "predictions") for number, task in enumerate(tasks)}
    for number, task in enumerate(tasks):
        if (results := drawn[number]) is not None:
            names |= dict.fromkeys(_read_task(reading, file, (f"task {task.get('id', number + 1)}", task), results))
    empty = sum(results is None for results in drawn.values())
    notes = [f"{file}: no task is annotated; predictions are read"] if guessed and empty < len(drawn) else []
    notes += [f"{file}: {empty} task(s) are not annotated, and not used"] if empty else []
    return reading.done(numbered(names), file, notes=notes)


def write_label_studio(annotations: Annotations, folder: Path) -> Path:
    """Writes one file; polygons stay polygons, and masks are brushes. What has scores is a prediction."""
    tasks = []
    for number, image in enumerate(annotations.images.values(), start=1):
        results = [result for item in image.objects for result in _written(image, item)]
        scores = [item.score for item in image.objects if item.score is not None]
        found: dict[str, Any] = {"result": results}
        if scores:
            found = {"model_version": "samtune", "score": min(scores), **found}
        kind = "predictions" if scores else "annotations"
        tasks.append({"id": number, "data": {"image": image.picture.name}, kind: [found]})
    target = folder / f"{annotations.name}.json"
    write_text(target, json.dumps(tasks))
    return target


def label_studio_files(place: Path) -> list[Path]:
    """Returns the files of Label Studio at a place, and no other list in JSON."""
    files = [place] if place.is_file() else find_annotations(place)
    return [file for file in files if _looks(file.read_bytes())] if len(files) <= MOST_FILES else []


def _looks(content: bytes) -> bool:
    return content.lstrip()[:1] == b"[" and b'"data"' in content and b'"result"' in content


def _results(task: Mapping[str, Any], kind: str) -> list[Any] | None:
    """Returns what the first annotation of a task has that was not cancelled; None where there is none."""
    every = task.get(kind)
    kept = [one for one in every if isinstance(one, dict)] if isinstance(every, list) else []
    return next((list(one.get("result") or []) for one in kept if not one.get("was_cancelled")), None)


def _read_task(reading: Reading, file: Path, named: tuple[str, Mapping[str, Any]], results: list[Any]) -> list[str]:
    """Adds a picture with its objects; returns the names of their categories."""
    title, task = named
    data = task.get("data")
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    paths = [unquote(text.rpartition("?d=")[2]) for text in texts]
    name = next((Path(path).name for path in paths if Path(path).suffix.lower() in SUFFIXES), None)
    if name is None:
        reading.complain(file, title, "no picture in its data; export it again")
        return []
    picture = reading.picture(file, name, _UPLOADED.sub("", name))
    if picture is None:
        return []
    regions = [result for result in results if isinstance(result, dict) and _kind(result)]
    try:
        sizes = {(result.get("original_width"), result.get("original_height")) for result in regions}
        size = next(iter(sizes)) if len(sizes) == 1 else picture_size(picture)
        image = reading.image(picture, file, int(size[0]), int(size[1]))  # type: ignore[arg-type]
    except (DataError, TypeError, ValueError, OverflowError) as error:
        reading.complain(file, title, f"the size of its picture is not known ({error}); export it again")
        return []
    found = []
    labelled = {str(result.get("id")) for result in regions if _labels(result)}
    for result in regions:
        kind, names, label = _kind(result), _labels(result), f"{title}, result {result.get('id', '(without id)')}"
        if not names and str(result.get("id")) not in labelled:  # else its labels are a result of their own
            reading.complain(file, f"{picture.name}, {label}", "no label; label it")
        score = result.get("score")
        number = float(score) if isinstance(score, int | float) else None
        for name in names:
            found.append(name)
            reading.boxes += kind == "rectangle"
            reading.add(image, label, name, partial(_region, kind, result, image), score=number)
    return found


def _labels(result: Mapping[str, Any]) -> list[str]:
    """Returns the labels of a region."""
    value = result.get("value")
    names = (value.get(str(result.get("type"))) or value.get("labels")) if isinstance(value, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _kind(result: Mapping[str, Any]) -> str:
    """Returns the kind of a region, "" for what is of the whole picture, such as a choice."""
    kind, value = str(result.get("type", "")).removesuffix("labels"), result.get("value")
    if kind == "" and isinstance(value, dict):  # of labels apart from their shapes
        keys = {"points": "polygon", "rle": "brush", "radiusX": "ellipse", "imageDataURL": "bitmask"}
        keys |= {"width": "rectangle"}
        kind = next((shape for key, shape in keys.items() if key in value), "")
    return kind if kind in (*_SHAPES, *_OTHERS) else ""


def _region(kind: str, result: Mapping[str, Any], image: Annotated) -> Region:
    height, width, value = image.height, image.width, result["value"]
    if result.get("image_rotation"):
        raise ValueError("drawn on a picture that Label Studio turned; turn the picture's file, and draw it again")
    size = result.get("original_width", width), result.get("original_height", height)
    if size != (width, height):
        raise ValueError(f"drawn on {size[0]} x {size[1]} pixels, but the picture has {width} x {height}")
    across, down = width / 100, height / 100
    if kind == "polygon":
        return (polygon([[x * across, y * down] for x, y in value["points"]]),)
    if kind == "brush":
        return encode_rle(unpack_brush(value["rle"], height, width))[0]
    if kind == "bitmask":
        return encode_rle(_unpack_bitmask(value["imageDataURL"], height, width))[0]
    if kind == "ellipse":
        x, y, right, below = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
        return (ellipse(x * across, y * down, right * across, below * down, float(value.get("rotation") or 0)),)
    if kind == "rectangle":
        x, y, right, below = (float(value[key]) for key in ("x", "y", "width", "height"))
        left, top = x * across, y * down
        level = rectangle(left, top, left + right * across, top + below * down)
        return (turned(level, float(value.get("rotation") or 0), (left, top)),)
    raise ValueError(f"a {kind}, which is not read; {', '.join(_SHAPES)} are")


def _unpack_bitmask(url: object, height: int, width: int) -> MaskArray:
    if not isinstance(url, str) or not url.startswith(_BITMASK):
        raise ValueError(f"a bitmask that does not start with {_BITMASK}")
    alpha = unpack_png(url.removeprefix(_BITMASK), "A")
    if alpha.shape != (height, width):
        found = f"{alpha.shape[1]} x {alpha.shape[0]} pixels, but the picture has {width} x {height}"
        raise ValueError(f"a bitmask of {found}")
    return cast("MaskArray", alpha > 127)


def _written(image: Annotated, item: Annotation) -> list[dict[str, Any]]:
    """Returns the results of an object."""
    size = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    common = {"from_name": "label", "to_name": "image", **size}
    common |= {} if item.score is None else {"score": item.score}
    if not isinstance(item.region, tuple):
        value = {"format": "rle", "rle": pack_brush(image.mask(item)), "brushlabels": [item.category]}
        return [{**common, "type": "brushlabels", "value": value}]
    results = []
    for points in item.region:
        percent = [[100 * x / image.width, 100 * y / image.height] for x, y in points.tolist()]
        shape: dict[str, Any] = {"points": percent, "closed": True, "polygonlabels": [item.category]}
        results.append({**common, "type": "polygonlabels", "value": shape})
    return results
