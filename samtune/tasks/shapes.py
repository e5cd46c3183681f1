"""In which forms is a region of a picture written: a colour, polygons for GeoJSON, COCO's run lengths?"""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from samtune.data.coco import encode_rle
from samtune.types import MaskArray, Size

Colour = tuple[int, int, int]
Region = tuple[MaskArray, Mapping[str, Any]]
"""Where it is, (H, W), and what an annotation or feature says of it."""
_GOLDEN = 0.618034  # of a circle of hues: colours that follow each other differ


def distinct_colours(count: int) -> list[Colour]:
    """Returns so many colours; those of two neighbours in the list are far apart."""
    found = []
    for place in range(count):
        strong, light = (0.75, 0.55, 0.9)[place % 3], (0.95, 0.8, 0.6)[place // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.58 + place * _GOLDEN) % 1, strong, light)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def coco_document(found: Iterable[tuple[str, Size, Iterable[Region]]], categories: Mapping[int, str]) -> dict[str, Any]:
    """Returns COCO's images, categories and annotations, whose segmentations are compressed run lengths.

    Args:
        found: of each image its file name, its size, and its regions.
        categories: id -> name.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, (name, (height, width), regions) in enumerate(found, start=1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for mask, said in regions:
            rle, area, bbox = encode_rle(mask)
            shape = {"segmentation": rle, "area": area, "bbox": bbox}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **said, **shape})
    named = [{"id": value, "name": name} for value, name in categories.items()]
    return {"images": images, "categories": named, "annotations": annotations}


def feature_collection(regions: Iterable[Region]) -> dict[str, Any]:
    """Returns GeoJSON with a feature of each region, its polygons in pixels: x to the right, y down, from the corner.

    An outline runs halfway between the centres of pixels that are in and out, so that the pixels whose centres it holds
    are those of the region.
    """
    features = []
    for mask, said in regions:
        geometry = {"type": "MultiPolygon", "coordinates": polygons(mask)}
        features.append({"type": "Feature", "properties": dict(said), "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def polygons(mask: MaskArray) -> Sequence[Sequence[Sequence[Sequence[float]]]]:
    """Returns the polygons of an (H, W) mask, each a list of closed rings of XY: the outline, then its holes."""
    from contourpy import FillType, LineType, contour_generator

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # a small object in a large picture
    field = np.pad(part, 1).astype(np.float64)
    steps = [
        np.arange(-1, side + 1) + 0.5 + start for side, start in zip(part.shape, (rows[0], columns[0]), strict=True)
    ]
    lines = contour_generator(steps[1], steps[0], field, fill_type=FillType.OuterOffset, line_type=LineType.Separate)
    found = []
    for points, offsets in zip(*lines.filled(0.5, 2.0), strict=True):
        rings = (points[start:stop] for start, stop in pairwise(offsets))
        found.append([ring.round(2).tolist() for ring in rings])
    return found
