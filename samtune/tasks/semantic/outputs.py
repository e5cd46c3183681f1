"""In which forms is a map of classes written: a picture with a palette, COCO's JSON, GeoJSON?"""

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from samtune.tasks.semantic.evaluate import MapPrediction
from samtune.tasks.semantic.maps import VALUES, ClassTable
from samtune.tasks.shapes import Region, coco_document, distinct_colours, feature_collection
from samtune.types import IGNORE, ClassMap, MaskArray


def palette_png(places: ClassMap, table: ClassTable) -> bytes:
    """Returns a PNG of the values that the data has for the classes, shown in `distinct_colours`."""
    palette = np.zeros((VALUES, 3), dtype=np.uint8)
    palette[list(table.values)] = distinct_colours(len(table.names))
    picture = Image.fromarray(table.to_values(places))
    picture.putpalette(palette.ravel().tolist())
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def coco_json(found: Mapping[str, MapPrediction], table: ClassTable) -> dict[str, Any]:
    """Returns a document of COCO with one annotation of each class in each image, by the file name of an image."""

    def annotated(prediction: MapPrediction) -> Iterator[Region]:
        for place, mask, score in regions(prediction):
            yield mask, {"category_id": table.values[place], "iscrowd": 1, "score": score}  # of all its objects

    images = ((name, one.places.shape, annotated(one)) for name, one in found.items())
    return coco_document(images, dict(zip(table.values, table.names, strict=True)))


def geojson(prediction: MapPrediction, table: ClassTable) -> dict[str, Any]:
    """Returns a feature of each class in one image; see `feature_collection`."""
    said = ((m, {"class": table.names[p], "value": table.values[p], "score": s}) for p, m, s in regions(prediction))
    return feature_collection(said)


def regions(prediction: MapPrediction) -> Iterator[tuple[int, MaskArray, float]]:
    """Yields each class that is in a map: its place, where it is, and its mean confidence there."""
    for place in np.unique(prediction.places).tolist():
        mask = prediction.places == place
        if place != IGNORE:
            yield place, mask, round(float(prediction.confidence[mask].mean()), 6)
