"""How are regions of a picture written as GeoJSON?"""

from collections.abc import Iterable, Mapping
from typing import Any

from samtune.data.formats.shapes import outlines
from samtune.types import MaskArray


def feature_collection(regions: Iterable[tuple[MaskArray, Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns a feature of each region, its polygons in pixels: x to the right, y down, from the corner.

    An outline runs halfway between the centres of pixels that are in and out, so that the pixels whose centres it holds
    are those of the region.

    Args:
        regions: where each is, (H, W), and the properties of its feature.
    """
    features = []
    for mask, said in regions:
        coordinates = [[ring.round(2).tolist() for ring in rings] for rings in outlines(mask)]
        geometry = {"type": "MultiPolygon", "coordinates": coordinates}
        features.append({"type": "Feature", "properties": dict(said), "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}
