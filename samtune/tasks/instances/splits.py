"""Which image belongs to which map of objects, is every pair usable, and what belongs to train, val and test?

COCO's objects may overlap, and a map has one object for each pixel: the smaller one is on top, whatever the order in
the file. The maps are drawn once, and kept in the cache.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samtune.data.cache import drawn_file, save_drawn
from samtune.data.coco import CocoImage, draw_objects, find_annotations, read_coco
from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError, DataError
from samtune.tasks.instances.objects import ObjectFacts, object_facts, paint

logger = logging.getLogger(__name__)

FOLDER = "instances"
"""What the folder of maps beside images/ is called."""


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder, or a part of it, has instances/."""
    places = [folder, *(folder / part for part in PARTS)]
    return any((place / FOLDER).is_dir() for place in places) and not any((folder / n).is_file() for n in LABEL_LISTS)


def verify_folder(folder: Path, *, name: str | None) -> VerifyReport:
    """Checks all that a run would; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and instances has a name; leave it out")
    return verify_parts(folder, OBJECTS)


def resolve_objects(
    folder: str | Path, *, split: SplitMode = "auto", seed: int = 0, given: Given = NONE_GIVEN
) -> Splits[Pair]:
    """Checks a data folder and returns its parts; see `samtune.data.pair_splits.resolve_parts`."""
    return resolve_parts(folder, OBJECTS, split=split, seed=seed, given=given)


def _none(parts: Mapping[str, Mapping[Path, ObjectFacts]]) -> list[str]:
    """Returns a line where no map of train, or of all if there is no train, has an object."""
    train = parts.get("train")
    maps = train or {path: facts for part in parts.values() for path, facts in part.items()}
    if not maps or any(facts.objects for facts in maps.values()):
        return []
    of = " of train" if train and len(parts) > 1 else ""
    return [f"all {len(maps)} maps{of} are without an object, such as {next(iter(maps))}: nothing to learn"]


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


OBJECTS = MaskKind(scan_objects, object_facts, _none, folder=FOLDER)
