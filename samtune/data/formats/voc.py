"""Pascal VOC: an XML file for each picture, of boxes, and of polygons as Roboflow writes them. Read only.

A polygon has the pixels of its edges, counted from 1: the rule of supervision, which Roboflow's files are made by, and
which draws them here. It holds no mask with holes, so that nothing is written.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from samtune.data.channels.tiff import picture_size
from samtune.data.formats.annotations import Annotated, Annotations, Reading, numbered
from samtune.data.formats.shapes import Region, encode_rle, polygon, rectangle
from samtune.errors import ConfigError, DataError


def read_voc(place: Path) -> Annotations:
    """Reads the files of a folder, or of its `Annotations/`; pictures are beside or below it.

    Raises:
        ConfigError: supervision is not installed.
    """
    reading, names, detections = Reading(place), dict[str, None](), _reader()
    for file in voc_files(place):
        try:
            root = ElementTree.parse(file).getroot()
            name = root.findtext("filename", "").strip()
            width, height = (int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            reading.problems.append(f"{file}: not a file of Pascal VOC ({error}); export it again")
            continue
        if not name:
            reading.problems.append(f"{file}: names no picture; write its <filename>")
        elif (picture := reading.picture(file, name, Path(name).name)) is not None:
            try:
                size = (width, height) if width and height else picture_size(picture)
            except DataError as error:
                reading.problems.append(str(error))
                continue
            names |= dict.fromkeys(_objects(reading, reading.image(picture, file, *size), root, detections))
    return reading.done(numbered(names), place)


def voc_files(place: Path) -> list[Path]:
    """Returns the files of a folder, told by the first of them."""
    found = sorted(place.glob("*.xml")) or sorted(place.glob("[Aa]nnotations/*.xml"))
    first = found[0].read_bytes() if found else b""
    return found if b"<annotation>" in first and (b"<object>" in first or b"<filename>" in first) else []


def _reader() -> Any:
    try:
        from supervision.dataset.formats.pascal_voc import detections_from_xml_obj
    except ImportError as err:
        text = "Pascal VOC is read by supervision, which is an extra: pip install 'samtune[supervision]'"
        raise ConfigError(f"{text} ({err}).") from err
    return detections_from_xml_obj


def _objects(reading: Reading, image: Annotated, root: Element, detections: Any) -> list[str]:
    """Adds the objects of a picture; returns the names of their categories."""
    names = []
    for number, item in enumerate(root.findall("object"), start=1):
        name = item.findtext("name", "").strip()
        label = f"object {number} ({name})"
        if not name:
            reading.complain(image.source, f"{image.picture.name}, {label}", "no name; name it")
            continue
        names.append(name)
        reading.boxes += item.find("polygon") is None
        reading.add(image, label, name, partial(_region, item, image, detections))
    return names


def _region(item: Element, image: Annotated, detections: Any) -> Region:
    """Returns what supervision makes of an object: its box, or the pixels of its polygons."""
    outlines = [[float(each.text or "nan") for each in outline] for outline in item.findall("polygon")]
    for numbers in outlines:
        polygon(numbers)  # a ValueError for what it would draw as a line, or not end drawing
    alone = Element("annotation")
    alone.append(item)
    seen, _ = detections(alone, [], (image.width, image.height), force_masks=bool(outlines))
    if not outlines:
        return (rectangle(*seen.xyxy[0].tolist()),)
    return encode_rle(seen.mask[0])[0]
