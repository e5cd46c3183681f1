"""COCO: one JSON file of images, categories and annotations; polygons, or run lengths, plain or packed."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from samtune.base.disk import write_text
from samtune.data.formats.annotations import Annotated, Annotation, Annotations, Reading, the_file
from samtune.data.formats.shapes import Region, encode_rle, polygon, run_lengths
from samtune.errors import DataError

Images = dict[Any, Annotated | None]
"""By id; None for a picture that is not there."""
MOST_FILES = 20
"""Files in JSON of a folder up to which they are looked into: more are one for each picture."""
UNNAMED = "object"
"""The category of a file without any."""
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read_coco(place: Path) -> Annotations:
    """Reads a file of COCO, or the one in a folder or its `annotations/`; pictures are beside or below it.

    Raises:
        DataError: no such file or several, or another file.
    """
    file = place if place.is_file() else _one(place)
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = [_entry(entry) for entry in content["images"]]
        annotations: list[dict[str, Any]] = [dict(item) for item in content["annotations"]]
        pairs = [(int(entry["id"]), str(entry["name"])) for entry in content.get("categories", [])]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{file}: not a file of COCO ({type(error).__name__}: {error}); export it again") from error
    reading, categories = Reading(root), dict(pairs)
    if len(categories) < len(pairs):
        reading.complain(file, "categories", "one id twice; give each its own")
    known: Images = {}
    for entry in entries:
        path = reading.picture(file, entry.name)
        known[entry.id] = None if path is None else reading.image(path, file, entry.width, entry.height)
    for item in annotations:
        _add(reading, file, known, categories, item)
    return reading.done(categories or {1: UNNAMED}, file)


def write_coco(annotations: Annotations, folder: Path) -> Path:
    """Writes one file; polygons stay polygons, and masks are packed run lengths."""
    images, found = [], list[dict[str, Any]]()
    number_of = {name: number for number, name in annotations.categories.items()}
    for number, image in enumerate(annotations.images.values(), start=1):
        images.append({"id": number, "file_name": image.picture.name, "width": image.width, "height": image.height})
        for item in image.objects:
            head = {"id": len(found) + 1, "image_id": number, "category_id": number_of[item.category]}
            found.append({**head, "iscrowd": int(item.crowd), **_shape(item, image)})
    categories = [{"id": number, "name": name} for number, name in annotations.categories.items()]
    target = folder / f"{annotations.name}.json"
    write_text(target, json.dumps({"images": images, "categories": categories, "annotations": found}))
    return target


def find_annotations(folder: Path) -> list[Path]:
    """Returns the files in a folder that may be COCO's, by their names."""
    return [path for place in (folder, folder / "annotations") for path in sorted(place.glob("*.json"))]


def coco_files(place: Path) -> list[Path]:
    """Returns the files of annotations at a place, and no other list in JSON.

    Beside `instances_*.json` others are not: as COCO is published, they have captions, or some of the objects again.
    """
    files = [place] if place.is_file() else find_annotations(place)
    files = [file for file in files if file.name.startswith("instances_")] or files
    return [file for file in files if _looks(file)] if len(files) <= MOST_FILES else []


def coco_parts(folder: Path) -> dict[str, Path]:
    """Returns the files of parts beside each other, such as `annotations/instances_train2017.json`."""
    files = coco_files(folder)
    found = {
        part: [file for file in files if any(word in file.stem for word in words)] for part, words in _SPLITS.items()
    }
    return {part: fitting[0] for part, fitting in found.items() if len(fitting) == 1} if len(files) > 1 else {}


class _Entry(NamedTuple):
    """An entry of `images`."""

    id: Any
    name: str
    width: int
    height: int


def _entry(content: Mapping[str, Any]) -> _Entry:
    """Reads an entry; raises what that of another kind of file does."""
    hash(content["id"])
    return _Entry(content["id"], str(content["file_name"]), int(content["width"]), int(content["height"]))


def _add(reading: Reading, file: Path, known: Images, categories: Mapping[int, str], item: Mapping[str, Any]) -> None:
    """Adds an annotation to its picture; one of a picture that is absent, which is noted already, is left out."""
    label, category = f"annotation {item.get('id', '(without id)')}", item.get("category_id")
    number = item.get("image_id")
    if not isinstance(number, Hashable) or number not in known:
        reading.complain(file, label, f"image_id {number!r} is of no picture in its images; take it out")
        return
    if (image := known[number]) is None:
        return
    name = categories.get(category) if isinstance(category, int) else None
    if name is None and categories:
        known_ids = ", ".join(map(str, list(categories)[:8])) + (", ..." if len(categories) > 8 else "")
        reason = f"category_id {category!r} is not among its categories ({known_ids}); mend the file"
        reading.complain(file, f"{image.picture.name}, {label}", reason)
    size = image.height, image.width
    crowd, score = bool(item.get("iscrowd", 0)), item.get("score")
    named = name if categories else UNNAMED
    reading.add(image, label, named, partial(_region, item, *size), crowd=crowd, score=score)


def _region(item: Mapping[str, Any], height: int, width: int) -> Region:
    """Returns the polygons or run lengths of an annotation."""
    shape = item.get("segmentation")
    if not shape and "bbox" in item:
        raise ValueError("a box without a segmentation, which does not say which pixels are the object's")
    if isinstance(shape, dict):
        return run_lengths(shape, height, width)
    if not isinstance(shape, list) or not shape:
        raise ValueError(f"segmentation {str(shape)[:40]!r}, which is neither polygons nor run lengths")
    return tuple(polygon(points) for points in shape)


def _shape(item: Annotation, image: Annotated) -> dict[str, Any]:
    """Returns the fields of an annotation that say where it is, with its score if it has one."""
    rle, area, box = encode_rle(image.mask(item))
    if not isinstance(item.region, dict):
        polygons = [points.round(4).ravel().tolist() for points in item.region]
        fields = {"segmentation": polygons, "area": area, "bbox": box}
    else:
        fields = {"segmentation": rle, "area": area, "bbox": box}
    return fields if item.score is None else {**fields, "score": item.score}


def _one(folder: Path) -> Path:
    found = find_annotations(folder) if folder.is_dir() else []
    fitting = found if len(found) < 2 else coco_files(folder)
    return the_file(fitting or found, folder, "annotations (.json)")


def _looks(file: Path) -> bool:
    content = file.read_bytes()
    return content.lstrip()[:1] == b"{" and b'"annotations"' in content and b'"images"' in content
