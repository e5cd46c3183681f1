"""In which forms are the objects of a picture written: an index picture, colours, COCO's JSON, GeoJSON, counts?"""

import csv
from collections.abc import Iterator, Mapping
from io import BytesIO, StringIO
from typing import Any

import numpy as np
from PIL import Image

from samtune.errors import DataError
from samtune.tasks.instances.separate import crops
from samtune.tasks.shapes import Region, coco_document, distinct_colours, feature_collection
from samtune.types import Instances, ObjectMap

MOST = 65535  # numbers of a picture of 16 bits


def index_png(labels: ObjectMap) -> bytes:
    """Returns a PNG of 16 bits: of each pixel the number of its object, 0 for none."""
    if labels.max(initial=0) > MOST:
        raise DataError(f"{labels.max():,} objects, more than the {MOST:,} numbers of a PNG of 16 bits; --format coco")
    return _png(Image.fromarray(labels.astype(np.uint16)))


def colour_png(labels: ObjectMap) -> bytes:
    """Returns a PNG of colours, one for each object, clear where there is none."""
    table = np.zeros((int(labels.max(initial=0)) + 1, 4), dtype=np.uint8)
    table[1:, :3], table[1:, 3] = np.array(distinct_colours(len(table) - 1), dtype=np.uint8).reshape(-1, 3), 255
    return _png(Image.fromarray(table[labels], mode="RGBA"))


def coco_json(found: Mapping[str, Instances]) -> dict[str, Any]:
    """Returns a document of COCO with an annotation of each object, by the file name of an image."""
    said = {"category_id": 1, "iscrowd": 0}
    images = ((name, one.labels.shape, regions(one, **said)) for name, one in found.items())
    return coco_document(images, {1: "object"})


def geojson(found: Instances) -> dict[str, Any]:
    """Returns a feature of each object of one image, with its number and score; see `feature_collection`."""
    return feature_collection((mask, {**said, "object": n}) for n, (mask, said) in enumerate(regions(found), start=1))


def counts_csv(found: Mapping[str, int]) -> str:
    """Returns a line for each image: the name of its file, and how many objects were found."""
    file = StringIO()
    csv.writer(file, lineterminator="\n").writerows([("image", "objects"), *found.items()])
    return file.getvalue()


def regions(found: Instances, **said: Any) -> Iterator[Region]:
    """Yields where each object is, and what is `said` of it with its score, in the order of the numbers."""
    for number, place, mask in crops(found.labels):
        whole: Any = np.zeros(found.labels.shape, dtype=np.bool_)
        whole[place] = mask
        yield whole, {**said, "score": round(float(found.scores[number - 1]), 6)}


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
