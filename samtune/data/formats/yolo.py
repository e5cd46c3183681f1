"""YOLO: a text file for each picture, a line for each object: its class and a polygon in shares of width and height.

A polygon with a hole is one whose outline runs to the hole and back on the same line; pieces of an object are lines of
their own. A line of four numbers is a box. A picture without a text file shows nothing.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from samtune.base.disk import write_text
from samtune.config.yaml_text import parse_yaml
from samtune.data.channels.tiff import picture_size
from samtune.data.formats.annotations import Annotated, Annotations, Reading, names_by_number, pictures_in
from samtune.data.formats.shapes import Region, bridged, outlines, polygon, rectangle
from samtune.errors import DataError

_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_PARTS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def read_yolo(place: Path) -> Annotations:
    """Reads the pictures of a place and their text files; names of classes are in a `data.yaml` there or above.

    Args:
        place: has `images/` and `labels/`, or is a folder of pictures below an `images/` beside which `labels/` is.

    Raises:
        DataError: no names of classes.
    """
    file = _names_file(place)
    if file is None:
        raise DataError(f"{place}: no data.yaml there or above; it gives the classes: names: [cat, dog]")
    categories, reading = _names(file), Reading(place)
    images, labels = _folders(place)
    without = 0
    for picture in pictures_in(images):
        source = labels / f"{picture.stem}.txt"
        try:
            image = reading.image(picture, source, *picture_size(picture))
        except DataError as error:
            reading.problems.append(str(error))
            continue
        if source.is_file():
            _lines(reading, image, categories)
        else:
            without += 1
    for source in sorted(labels.glob("*.txt")):
        if source.stem not in reading.images and source.name != "classes.txt":
            reading.problems.append(f"{source}: no picture of this stem in {images}; add it, or take this out")
    notes = [f"{place}: {without} picture(s) without a text file, which show nothing"] if without else []
    return reading.done(categories, file, notes=notes)


def write_yolo(annotations: Annotations, folder: Path) -> Path:
    """Writes `labels/` and `data.yaml`, classes numbered from 0; polygons of one piece stay, others are traced."""
    names = list(annotations.categories.values())
    for stem, image in annotations.images.items():
        size = np.array([image.width, image.height])
        lines = []
        for item in image.objects:
            kept = isinstance(item.region, tuple) and len(item.region) == 1
            traced = () if kept else tuple(bridged(rings) for rings in outlines(image.mask(item)))
            pieces = item.region if kept else traced
            for points in pieces:
                shares = " ".join(f"{value:.9g}" for value in (points / size).ravel())
                lines.append(f"{names.index(item.category)} {shares}\n")
        write_text(folder / "labels" / f"{stem}.txt", "".join(lines))
    listed = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
    write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{listed}")
    return folder / "labels"


def yolo_files(place: Path) -> list[Path]:
    """Returns the text files and the list of names of a place; none where one of both is missing."""
    file, (_, labels) = _names_file(place), _folders(place)
    texts = sorted(labels.glob("*.txt")) if labels.is_dir() else []
    return [file, *texts] if file is not None and texts else []


def yolo_parts(folder: Path) -> dict[str, Path]:
    """Returns the parts below `images/`; those with an `images/` each are found as of all formats."""
    places = {part: [folder / "images" / name for name in names] for part, names in _PARTS.items()}
    return {part: place for part, some in places.items() for place in some if yolo_files(place)}


def _folders(place: Path) -> tuple[Path, Path]:
    """Returns where the pictures and the text files of a place are."""
    if (place / "images").is_dir():
        return place / "images", place / "labels"
    parts = list(place.parts)
    last = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    return place, place if last is None else Path(*parts[:last], "labels", *parts[last + 1 :])


def _names_file(place: Path) -> Path | None:
    above = [place, *list(place.absolute().parents)[:2]]
    return next((folder / name for folder in above for name in _LISTS if (folder / name).is_file()), None)


def _names(file: Path) -> dict[int, str]:
    try:
        content = parse_yaml(file.read_text(encoding="utf-8")).value
        return dict(names_by_number(content["names"]))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file}: no list of names ({reason}); it gives the classes: names: [cat, dog]") from error


def _lines(reading: Reading, image: Annotated, categories: dict[int, str]) -> None:
    """Reads the objects of a picture."""
    try:
        text = image.source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reading.problems.append(f"{image.source}: can't be read ({error}); export it again")
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not (words := line.split()):
            continue
        name = categories.get(int(words[0])) if words[0].isdecimal() else None
        if name is None:
            known = f"0 to {max(categories, default=0)}"
            reason = f"class {words[0]!r} is not among the names of data.yaml ({known}); mend it"
            reading.complain(image.source, f"line {number}", reason)
        reading.boxes += len(words) == 5
        reading.add(image, f"line {number}", name, partial(_region, words[1:], image.width, image.height))


def _region(words: list[str], width: int, height: int) -> Region:
    """Returns the polygon or the box of a line, in pixels."""
    try:
        shares = np.array([float(word) for word in words])
    except ValueError:
        raise ValueError("coordinates that are no numbers") from None
    if len(shares) and not (np.isfinite(shares).all() and shares.min() >= -0.5 and shares.max() <= 1.5):
        raise ValueError("coordinates that are not shares of width and height, from 0 to 1")
    if len(shares) == 4:
        x, y, across, down = shares * [width, height, width, height]
        return (rectangle(x - across / 2, y - down / 2, x + across / 2, y + down / 2),)
    points = polygon(shares)
    return (points * [width, height],)
