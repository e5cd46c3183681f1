"""Which objects does a picture have without a model? Otsu's threshold, and a watershed of the distance to its edge."""

from typing import Any

import cv2
import numpy as np

from samtune.metrics.trivial import otsu
from samtune.tasks.instances.separate import parted
from samtune.types import ImageArray, Instances, MaskArray

DEPTH = 1.0  # pixels by which a peak of the distance stands out that is an object of its own


def trivial_instances(image: ImageArray) -> dict[str, Instances]:
    """Returns the answers by key of `samtune.metrics.trivial.TRIVIAL`, for (H, W, 3) uint8 RGB; every score is 1."""
    bright = otsu(image)
    return {"watershed_bright": _objects(bright), "watershed_dark": _objects(~bright)}


def _objects(mask: MaskArray) -> Instances:
    depth: Any = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    labels, count = parted(depth, mask, DEPTH)
    return Instances(labels, np.ones(count, dtype=np.float32))
