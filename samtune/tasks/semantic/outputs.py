"""In which forms is a map of classes written: a picture with a palette, COCO's JSON, GeoJSON?"""

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from samtune.data.coco import encode_rle
from samtune.tasks.semantic.evaluate import MapPrediction
from samtune.tasks.semantic.maps import VALUES, ClassTable
from samtune.types import IGNORE, ClassMap, MaskArray

Colour = tuple[int, int, int]
_GOLDEN = 0.618034  # of a circle of hues: colours that follow each other differ


def class_colours(count: int) -> list[Colour]:
    """Returns a colour for each class; those of two neighbours in the list are far apart."""
    found = []
    for place in range(count):
        strong, light = (0.75, 0.55, 0.9)[place % 3], (0.95, 0.8, 0.6)[place // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.58 + place * _GOLDEN) % 1, strong, light)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def palette_png(places: ClassMap, table: ClassTable) -> bytes:
    """Returns a PNG of the values that the data has for the classes, shown in `class_colours`."""
    palette = np.zeros((VALUES, 3), dtype=np.uint8)
    palette[list(table.values)] = class_colours(len(table.names))
    picture = Image.fromarray(table.to_values(places))
    picture.putpalette(palette.ravel().tolist())
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def coco_json(found: Mapping[str, MapPrediction], table: ClassTable) -> dict[str, Any]:
    """Returns COCO's images, categories and annotations, one of each class in each image, as compressed run lengths.

    Args:
        found: file name of an image -> its map.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, (name, prediction) in enumerate(found.items(), start=1):
        height, width = prediction.places.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for place, mask, score in regions(prediction):
            rle, area, bbox = encode_rle(mask)
            category = {"image_id": number, "category_id": table.values[place], "iscrowd": 1}  # of all its objects
            shape = {"segmentation": rle, "area": area, "bbox": bbox, "score": score}
            annotations.append({"id": len(annotations) + 1, **category, **shape})
    pairs = zip(table.values, table.names, strict=True)
    categories = [{"id": value, "name": name} for value, name in pairs]
    return {"images": images, "categories": categories, "annotations": annotations}


def geojson(prediction: MapPrediction, table: ClassTable) -> dict[str, Any]:
    """Returns a feature of each class in one image, its polygons in pixels: x to the right, y down, from the corner.

    An outline runs halfway between the centres of pixels that are in and out, so that the pixels whose centres it holds
    are those of the class.
    """
    features = []
    for place, mask, score in regions(prediction):
        properties = {"class": table.names[place], "value": table.values[place], "score": score}
        geometry = {"type": "MultiPolygon", "coordinates": polygons(mask)}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def regions(prediction: MapPrediction) -> Iterator[tuple[int, MaskArray, float]]:
    """Yields each class that is in a map: its place, where it is, and its mean confidence there."""
    for place in np.unique(prediction.places).tolist():
        mask = prediction.places == place
        if place != IGNORE:
            yield place, mask, round(float(prediction.confidence[mask].mean()), 6)


def polygons(mask: MaskArray) -> Sequence[Sequence[Sequence[Sequence[float]]]]:
    """Returns the polygons of an (H, W) mask, each a list of closed rings of XY: the outline, then its holes."""
    from contourpy import FillType, LineType, contour_generator

    field = np.pad(mask, 1).astype(np.float64)
    steps = [np.arange(-1, side + 1) + 0.5 for side in mask.shape]  # of the centres
    lines = contour_generator(steps[1], steps[0], field, fill_type=FillType.OuterOffset, line_type=LineType.Separate)
    found = []
    for points, offsets in zip(*lines.filled(0.5, 2.0), strict=True):
        rings = (points[start:stop] for start, stop in pairwise(offsets))
        found.append([ring.round(2).tolist() for ring in rings])
    return found
