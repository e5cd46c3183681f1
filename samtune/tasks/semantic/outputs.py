"""In which forms is a map of classes written: a picture with a palette, annotations, GeoJSON?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from samtune.data.formats.annotations import Annotated, Annotation
from samtune.data.formats.index_pictures import index_png
from samtune.data.formats.shapes import encode_rle
from samtune.tasks.semantic.evaluate import MapPrediction
from samtune.tasks.semantic.maps import ClassTable
from samtune.tasks.shapes import feature_collection
from samtune.types import IGNORE, ClassMap, MaskArray


def palette_png(places: ClassMap, table: ClassTable) -> bytes:
    """Returns a PNG of the values that the data has for the classes, shown in `distinct_colours`."""
    return index_png(table.to_values(places), table.values)


def annotated(image: Path, prediction: MapPrediction, table: ClassTable) -> Annotated:
    """Returns the classes of an image as annotations: one of each class, which stands for all its objects."""
    height, width = prediction.places.shape
    objects = [
        Annotation(table.names[place], encode_rle(mask)[0], crowd=True, score=score)
        for place, mask, score in regions(prediction)
    ]
    return Annotated(image, image, width, height, objects)


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
