"""How is a folder of each kind of data looked at? One more kind is a function, and one line in `READERS`."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.formats.table import ANY
from samtune.data.frames import resize
from samtune.data.pairs import Pair
from samtune.data.splits import PARTS
from samtune.errors import DataError
from samtune.starting.cut import first_seed
from samtune.starting.found import Found, Sample, Share, counts, look_at_pictures
from samtune.starting.labels import spread
from samtune.starting.names import find_names
from samtune.starting.pixels import measure_pixels
from samtune.tasks.binary import read_mask
from samtune.tasks.classes.splits import ClassSplits, resolve_classes
from samtune.tasks.instances.draw import numbered
from samtune.tasks.instances.layouts.splits import kind_of as kind_of_objects
from samtune.tasks.instances.layouts.splits import recognises as has_maps
from samtune.tasks.instances.layouts.splits import resolve_objects
from samtune.tasks.instances.objects import object_facts, read_objects, renumbered
from samtune.tasks.masks.draw import TRUTH, outlined
from samtune.tasks.masks.splits import kind_of as kind_of_masks
from samtune.tasks.masks.splits import resolve_split, with_object
from samtune.tasks.panels import INK, captioned
from samtune.tasks.prompts import MIN_AREA
from samtune.tasks.semantic.draw import legend
from samtune.tasks.semantic.maps import ClassTable, map_facts
from samtune.tasks.semantic.splits import MapSplits, resolve_maps
from samtune.tasks.semantic.splits import kind_of as kind_of_maps
from samtune.types import IGNORE, ClassMap, ImageArray, MaskArray

SAMPLES = 12  # of the sheet
MEASURED = 100  # masks of train whose objects are measured, spread over all


@dataclass(frozen=True)
class Reader:
    """How data of a task is looked at.

    Attributes:
        look: (folder, why it is that) -> what is found; a `DataError` with everything that a run would refuse.
        layout: the layout in a few words, where names alone tell it.
        value: what a value of a mask means, for who has to choose; "" where masks have no values to choose by.
    """

    look: Callable[[Path, str], Found]
    layout: str
    value: str = ""


def look_at_masks(folder: Path, why: str) -> Found:
    """Looks at pairs of images and binary masks."""
    named = find_names(folder)
    source = named.source if named else ANY
    kind = kind_of_masks(folder, source)
    pixels = measure_pixels(folder, kind)
    resolve = partial(resolve_split, folder, source=source, pixels=pixels, empty="train")
    splits, seed = first_seed(folder, replace(kind, pixels=pixels), lambda seed: resolve(seed=seed))
    pairs = [pair for part in PARTS for pair in getattr(splits, part)]
    with_one = with_object(splits.train)
    objects = [_sides([read_mask(with_one[i].mask)]) for i in spread(with_one, MEASURED)]
    chosen = [splits.train[i] for i in spread(splits.train, SAMPLES)]
    covered = [float(read_mask(with_one[i].mask).mean()) for i in spread(with_one, MEASURED)]
    return Found(
        task="segmentation",
        why=why,
        parts=counts(splits),
        notes=splits.notes,
        pictures=look_at_pictures([pair.image for pair in pairs]),
        classes=[Share("foreground, where there is an object", float(np.mean(covered)))],
        empty=len(pairs) - len(with_object(pairs)),
        **_objects(objects),
        samples=[Sample(pair.name, pair.image, partial(_outline, pair)) for pair in chosen],
        named=named,
        pixels=pixels,
        seed=seed,
    )


def look_at_maps(folder: Path, why: str) -> Found:
    """Looks at pairs of images and maps of classes."""
    named = find_names(folder)
    source = named.source if named else ANY
    kind = kind_of_maps(folder, None, IGNORE, source=source)
    pixels = measure_pixels(folder, kind)
    resolve = partial(resolve_maps, folder, names=None, ignore=IGNORE, source=source, pixels=pixels)
    splits, seed = first_seed(folder, replace(kind, pixels=pixels), lambda seed: resolve(seed=seed))
    pairs = [pair for part in PARTS for pair in getattr(splits, part)]
    chosen = [splits.train[i] for i in spread(splits.train, SAMPLES)]
    names = splits.table.names
    objects = []
    for index in spread(splits.train, MEASURED):
        places = splits.table.places(splits.train[index].mask)
        pieces = (_sides([places == place]) for place in range(len(names)))
        objects.append([max(sides) for sides in pieces if sides])
    return Found(
        task="semantic",
        why=why,
        parts=counts(splits),
        notes=splits.notes,
        pictures=look_at_pictures([pair.image for pair in pairs]),
        classes=_pixel_shares(splits),
        **_objects(objects),
        samples=[Sample(pair.name, pair.image, partial(_tint, pair, splits.table)) for pair in chosen],
        named=named,
        pixels=pixels,
        seed=seed,
        legend=partial(legend, range(len(names)), names),
    )


def look_at_objects(folder: Path, why: str) -> Found:
    """Looks at pairs of images and maps of objects."""
    named = None if has_maps(folder) else find_names(folder)
    source = named.source if named else ANY
    kind = kind_of_objects(folder, source)
    pixels = measure_pixels(folder, kind)
    resolve = partial(resolve_objects, folder, source=source, pixels=pixels)
    splits, seed = first_seed(folder, replace(kind, pixels=pixels), lambda seed: resolve(seed=seed))
    pairs = [pair for part in PARTS for pair in getattr(splits, part)]
    facts = object_facts([pair.mask for pair in pairs])
    objects = []
    for index in spread(splits.train, MEASURED):
        labels = read_objects(splits.train[index].mask)
        areas = np.bincount(labels.ravel())[1:]
        objects.append([float(np.sqrt(area)) / max(labels.shape) for area in areas if area])
    chosen = [splits.train[i] for i in spread(splits.train, SAMPLES)]
    return Found(
        task="instances",
        why=why,
        parts=counts(splits),
        notes=splits.notes,
        pictures=look_at_pictures([pair.image for pair in pairs]),
        empty=sum(not isinstance(fact, DataError) and not fact.objects for fact in facts),
        **_objects(objects),
        samples=[Sample(pair.name, pair.image, partial(_number, pair)) for pair in chosen],
        named=named,
        pixels=pixels,
        seed=seed,
    )


def look_at_classes(folder: Path, why: str) -> Found:
    """Looks at pictures in folders of classes."""
    splits = resolve_classes(folder)
    items = [item for part in PARTS for item in getattr(splits, part)]
    chosen = [splits.train[i] for i in spread(splits.train, SAMPLES)]
    return Found(
        task="classification",
        why=why,
        parts=counts(splits),
        notes=splits.notes,
        pictures=look_at_pictures([item.image for item in items]),
        classes=_picture_shares(splits),
        samples=[Sample(item.name, item.image, partial(_caption, splits.classes[item.label])) for item in chosen],
    )


def _sides(masks: Iterable[MaskArray]) -> list[float]:
    """Returns the side of each connected piece of masks of one picture, as a part of its longer side."""
    found = []
    for mask in masks:
        areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        found += [float(np.sqrt(area)) / max(mask.shape) for area in areas if area >= min(MIN_AREA, areas.max())]
    return found


def _objects(per_picture: Sequence[list[float]]) -> dict[str, Any]:
    """Returns the fields of `Found` on objects, from the sides in each picture."""
    sides = sorted(side for picture in per_picture for side in picture)
    number = round(median(len(picture) for picture in per_picture)) if per_picture else 0
    return {"sides": sides, "per_picture": number}


def _pixel_shares(splits: MapSplits) -> list[Share]:
    pixels: Counter[int] = Counter()
    for facts in map_facts([pair.mask for pair in splits.train]):
        if not isinstance(facts, DataError):
            pixels.update(dict(facts.pixels))
    table, total = splits.table, sum(pixels[value] for value in splits.table.values)
    return [Share(name, pixels[v] / total, v) for v, name in zip(table.values, table.names, strict=True)]


def _picture_shares(splits: ClassSplits) -> list[Share]:
    found = Counter(item.label for item in splits.train)
    return [Share(name, found[place] / len(splits.train)) for place, name in enumerate(splits.classes)]


def _outline(pair: Pair, picture: ImageArray) -> ImageArray:
    return outlined(picture, _scaled(read_mask(pair.mask), picture) > 0, TRUTH)


def _tint(pair: Pair, table: ClassTable, picture: ImageArray) -> ImageArray:
    places: ClassMap = table.places(pair.mask)
    colours = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
    colours[: len(table.names)] = distinct_colours(len(table.names))
    return cv2.addWeighted(picture, 0.45, colours[_scaled(places, picture)], 0.55, 0)  # type: ignore[return-value]


def _number(pair: Pair, picture: ImageArray) -> ImageArray:
    return numbered(picture, resize(renumbered(read_objects(pair.mask))[0], picture.shape[:2]))


def _caption(name: str, picture: ImageArray) -> ImageArray:
    return captioned(picture, (name, INK))


def _scaled(values: np.ndarray, picture: ImageArray) -> np.ndarray:
    return cv2.resize(values.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)


READERS: dict[str, Reader] = {
    "segmentation": Reader(look_at_masks, "images/ and masks/"),
    "classification": Reader(look_at_classes, "a folder per class, or lists of classes"),
    "semantic": Reader(
        look_at_maps,
        "masks in a folder per class, or annotations with names of classes",
        "each value is a class, the same in all masks",
    ),
    "instances": Reader(look_at_objects, "images/ and instances/"),
}
