"""In which forms are the objects of a picture written: an index picture, colours, annotations, GeoJSON, counts?"""

import csv
from collections.abc import Iterator, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtune.data.formats.annotations import Annotated, Annotation
from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.formats.shapes import Rle, encode_rle
from samtune.errors import DataError
from samtune.tasks.instances.separate import crops
from samtune.tasks.shapes import feature_collection
from samtune.types import Instances, MaskArray, ObjectMap

MOST = 65535  # numbers of a picture of 16 bits


def index_values(labels: ObjectMap) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """Returns (H, W) uint16, of each pixel the number of its object, 0 for none; a `DataError` for too many."""
    if labels.max(initial=0) > MOST:
        raise DataError(f"{labels.max():,} objects, more than the {MOST:,} numbers of 16 bits; --format coco")
    return labels.astype(np.uint16)


def index_png(labels: ObjectMap) -> bytes:
    """Returns a PNG of 16 bits of `index_values`."""
    return _png(Image.fromarray(index_values(labels)))


def colour_png(labels: ObjectMap) -> bytes:
    """Returns a PNG of colours, one for each object, clear where there is none."""
    table = np.zeros((int(labels.max(initial=0)) + 1, 4), dtype=np.uint8)
    table[1:, :3], table[1:, 3] = np.array(distinct_colours(len(table) - 1), dtype=np.uint8).reshape(-1, 3), 255
    return _png(Image.fromarray(table[labels], mode="RGBA"))


def annotated(image: Path, found: Instances, category: str) -> Annotated:
    """Returns the objects of an image as annotations of one category, in the order of their numbers."""
    height, width = found.labels.shape
    objects = [
        Annotation(category, rle, label=f"object {number}", score=score) for number, score, (rle, *_) in _encoded(found)
    ]
    return Annotated(image, image, width, height, objects)


def told(found: Instances) -> list[dict[str, Any]]:
    """Returns for JSON each object's number, score, area, box, run lengths, and colour, that of `colour_png`."""
    each = zip(_encoded(found), distinct_colours(len(found)), strict=True)
    return [
        {"object": number, "score": score, "area": area, "bbox": bbox, "colour": colour, **rle}
        for (number, score, (rle, area, bbox)), colour in each
    ]


def geojson(found: Instances) -> dict[str, Any]:
    """Returns a feature of each object of one image, with its number and score; see `feature_collection`."""
    return feature_collection((mask, {"score": score, "object": number}) for number, mask, score in regions(found))


def counts_csv(found: Mapping[str, int]) -> str:
    """Returns a line for each image: the name of its file, and how many objects were found."""
    file = StringIO()
    csv.writer(file, lineterminator="\n").writerows([("image", "objects"), *found.items()])
    return file.getvalue()


def regions(found: Instances) -> Iterator[tuple[int, MaskArray, float]]:
    """Yields the number of each object, where it is, and its score, in the order of the numbers."""
    for number, place, mask in crops(found.labels):
        whole: Any = np.zeros(found.labels.shape, dtype=np.bool_)
        whole[place] = mask
        yield number, whole, _score(found, number)


def _encoded(found: Instances) -> Iterator[tuple[int, float, tuple[Rle, int, list[float]]]]:
    """Yields number and score of each object, and what `encode_rle` says of it."""
    for number, place, mask in crops(found.labels):
        yield number, _score(found, number), encode_rle(mask, place, found.labels.shape)


def _score(found: Instances, number: int) -> float:
    return round(float(found.scores[number - 1]), 6)


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
