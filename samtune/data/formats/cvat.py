"""CVAT for images 1.1: one XML file; polygons, boxes, ellipses, and masks as run lengths by rows in their box."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from samtune.base.disk import write_bytes
from samtune.data.formats.annotations import Annotated, Annotation, Annotations, Reading, numbered, the_file
from samtune.data.formats.shapes import Region, crop_of, ellipse, place_crop, polygon, rectangle, turned
from samtune.errors import DataError

_SHAPES = ("polygon", "box", "ellipse", "mask")
_EMPTY = ("polyline", "points", "cuboid", "skeleton")


def read_cvat(place: Path) -> Annotations:
    """Reads the file of a folder; pictures are beside or below it. Objects are drawn by their `z_order`.

    Raises:
        DataError: no such file or several, or another file.
    """
    file = the_file(cvat_files(place), place, "CVAT for images 1.1 (.xml)")
    try:
        root = ElementTree.parse(file).getroot()
        entries = [(_text(e, "name"), int(_text(e, "width")), int(_text(e, "height")), e) for e in root.iter("image")]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: not a file of CVAT for images 1.1 ({error}); export it again") from error
    reading = Reading(place if place.is_dir() else place.parent)
    listed = [label.findtext("name") or "" for label in root.iter("label")]
    names = dict.fromkeys(name for name in listed if name)
    for name, width, height, entry in entries:
        picture = reading.picture(file, name, Path(name).name)
        if picture is not None:
            found_names = _objects(
                reading, reading.image(picture, file, width, height), entry, names if listed else None
            )
            names |= {} if listed else dict.fromkeys(found_names)
    if len(names) < len(listed):
        reading.complain(file, "labels", "two of one name, or one without; mend them")
    return reading.done(dict(enumerate(names, start=1)) if listed else numbered(names), file)


def write_cvat(annotations: Annotations, folder: Path) -> Path:
    """Writes one file; polygons stay polygons, and masks are masks."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in annotations.categories.values():
        SubElement(SubElement(labels, "label"), "name").text = name
    for number, image in enumerate(annotations.images.values()):
        size = {"width": str(image.width), "height": str(image.height)}
        entry = SubElement(root, "image", {"id": str(number), "name": image.picture.name, **size})
        for order, item in enumerate(image.objects):
            _write(entry, image, item, order)
    target = folder / f"{annotations.name}.xml"
    write_bytes(target, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    return target


def cvat_files(place: Path) -> list[Path]:
    """Returns the files of CVAT's images in a folder, or the file that is given."""
    files = [place] if place.is_file() else sorted(place.glob("*.xml"))
    return [file for file in files if b"<annotations" in file.read_bytes()]


def _objects(reading: Reading, image: Annotated, entry: Element, names: dict[str, None] | None) -> list[str]:
    """Adds the objects of a picture; returns the names of their categories, of `names` unless these are None."""
    found = []
    shapes = [(number, shape) for number, shape in enumerate(entry, start=1) if shape.tag in (*_SHAPES, *_EMPTY)]
    for number, shape in sorted(shapes, key=lambda pair: _order(pair[1])):
        name = shape.get("label") or ""
        label = f"{shape.tag} {number} ({name})"
        if not name or (names is not None and name not in names):
            known = "empty; label it" if names is None else f"not among its labels ({', '.join(names)}); mend the file"
            reason = f"label {name!r} is {known}"
            reading.complain(image.source, f"{image.picture.name}, {label}", reason)
            continue
        found.append(name)
        reading.boxes += shape.tag == "box"
        score = shape.get("score")
        number_of_score = float(score) if score and score.replace(".", "", 1).isdecimal() else None
        reading.add(image, label, name, partial(_region, shape, image), score=number_of_score)
    return found


def _region(shape: Element, image: Annotated) -> Region:
    if shape.tag == "polygon":
        return (polygon(_points(_text(shape, "points"))),)
    if shape.tag == "box":
        left, top, right, bottom = (float(_text(shape, key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        return (turned(rectangle(left, top, right, bottom), float(shape.get("rotation", 0))),)
    if shape.tag == "ellipse":
        x, y, across, down = (float(_text(shape, key)) for key in ("cx", "cy", "rx", "ry"))
        return (ellipse(x, y, across, down, float(shape.get("rotation", 0))),)
    if shape.tag == "mask":
        left, top, width, height = (int(_text(shape, key)) for key in ("left", "top", "width", "height"))
        if width > image.width or height > image.height:
            raise ValueError(f"a mask of {width} x {height} pixels, more than the picture's")
        crop = _unpacked([int(word) for word in _text(shape, "rle").split(",") if word.strip()], width, height)
        return place_crop(crop, left, top, image.height, image.width)
    raise ValueError(f"a {shape.tag}, which covers no pixels; {', '.join(_SHAPES)} do")


def _points(text: str) -> list[list[float]]:
    return [[float(number) for number in pair.split(",")] for pair in text.split(";") if pair.strip()]


def _unpacked(counts: Sequence[int], width: int, height: int) -> np.ndarray:
    """Returns the (height, width) mask of run lengths by rows, which begin with background."""
    if min(counts, default=0) < 0 or sum(counts) != width * height:
        raise ValueError(f"run lengths of {sum(counts)} pixels, but its box has {width} x {height}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def _packed(crop: np.ndarray) -> str:
    runs = [(bool(value), len(list(run))) for value, run in groupby(crop.ravel().tolist())]
    counts = [0] if runs and runs[0][0] else []
    return ", ".join(map(str, [*counts, *(length for _, length in runs)]))


def _write(entry: Element, image: Annotated, item: Annotation, order: int) -> None:
    common = {"label": item.category, "source": "file", "occluded": "0", "z_order": str(order)}
    if item.score is not None:
        common |= {"score": str(item.score), "source": "auto"}
    if isinstance(item.region, tuple):
        group = {"group_id": str(order + 1)} if len(item.region) > 1 else {}
        for points in item.region:
            text = ";".join(f"{x:.9g},{y:.9g}" for x, y in points.tolist())
            SubElement(entry, "polygon", {**common, **group, "points": text})
        return
    crop, left, top = crop_of(image.mask(item))
    place = {"left": str(left), "top": str(top), "width": str(crop.shape[1]), "height": str(crop.shape[0])}
    SubElement(entry, "mask", {**common, "rle": _packed(crop), **place})


def _order(shape: Element) -> int:
    text = shape.get("z_order", "0")
    return int(text) if text.removeprefix("-").isdecimal() else 0


def _text(element: Element, key: str) -> str:
    text = element.get(key)
    if text is None:
        raise ValueError(f"{element.tag} without {key}")
    return text
