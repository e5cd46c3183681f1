"""How do images/ with instances/, and COCO's annotations, become pairs of image and map of objects?

COCO's objects may overlap, and a map has one object for each pixel: the smaller one is on top, whatever the order in
the file. The maps are drawn once, and kept in the cache.
"""

import logging
from pathlib import Path

import numpy as np

from samtune.data.cache import drawn_file, save_drawn
from samtune.data.coco import CocoImage, draw_objects, find_annotations, read_coco
from samtune.data.pairs import Pair, scan_folder
from samtune.errors import DataError
from samtune.tasks.instances.objects import paint

logger = logging.getLogger(__name__)

FOLDER = "instances"
"""What the folder of maps beside images/ is called."""


def scan_objects(folder: Path) -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a folder, and a line per problem; maps that COCO only implies are drawn first."""
    if not (folder / FOLDER).exists() and len(find_annotations(folder)) == 1:
        return _scan_coco(folder)
    return scan_folder(folder, FOLDER)


def _scan_coco(folder: Path) -> tuple[list[Pair], list[str]]:
    try:
        coco = read_coco(folder)
    except DataError as error:
        return [], [str(error)]
    pairs, problems = [], list[str]()
    for stem, image in sorted(coco.images.items()):
        target = drawn_file("object-maps", image.picture, [image.picture, coco.file], "1")
        try:
            pairs.append(Pair(stem, image.picture, target if target.is_file() else _drawn(image, target)))
        except DataError as error:
            problems += [f"{coco.file}: {line}" for line in str(error).splitlines()]
    return pairs, problems


def _drawn(image: CocoImage, target: Path) -> Path:
    """Draws the objects of an image; a `DataError` has a line for each that has no pixel of its own."""
    masks = [draw_objects(image._replace(objects=[one]), lambda _: 1) > 0 for one in image.objects]
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    order = np.argsort(-areas, kind="stable").tolist()
    labels = paint((masks[place] for place in order), (image.height, image.width))
    seen = set(np.unique(labels).tolist())
    lines = []
    for number, place in enumerate(order, start=1):
        if number not in seen:
            why = "lies wholly under smaller ones" if areas[place] else "covers no pixel"
            lines.append(f"{image.picture.name}: object {place + 1} {why}; take it out, or mend it")
    if lines:
        raise DataError("\n".join(lines))
    if shared := int(areas.sum()) - int(np.count_nonzero(labels)):
        logger.warning("%s: objects overlap in %d pixels; the smaller one has them", image.picture, shared)
    return save_drawn(target, labels.astype(np.uint16))
