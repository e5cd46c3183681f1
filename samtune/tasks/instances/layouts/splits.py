"""Which image belongs to which map of objects, is every pair usable, and what belongs to train, val and test?

The objects of annotations may overlap, and a map has one object for each pixel: the smaller one is on top, whatever the
order in the file. The maps are drawn once, and kept in the cache.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from samtune.config.pixels import RGB, Pixels
from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.drawing import GROUND, scan_drawn, told
from samtune.data.formats.table import ANY, FORMATS, SEPARATE, Source, categories_of, left_out
from samtune.data.pair_splits import MaskKind, SplitMode, pair_folders, resolve_parts, verify_parts
from samtune.data.pairs import Pair
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.tasks.instances.layouts.folders import FOLDER, has_objects, scan_objects
from samtune.tasks.instances.objects import ObjectFacts, object_facts, paint_smaller_over


@dataclass(frozen=True)
class ObjectDrawing:
    """Which objects of annotations are in the maps that are drawn: those of other categories, which stand for one each.

    Attributes:
        left_out: categories that are not drawn.
    """

    left_out: frozenset[str]

    def __str__(self) -> str:
        """Says all of it in one order, which a set does not have from one process to the next."""
        return f"objects without {sorted(self.left_out)}"

    def draw(self, image: Annotated) -> np.ndarray:
        """Draws the objects of a picture, smaller ones over larger ones: (H, W) uint16, numbered from the largest."""
        objects = [item for item in self._chosen(image) if not item.crowd]
        masks = [partial(image.mask, item) for item in objects]
        names = [f"{image.source}: {image.picture.name}, {item.label}" for item in objects]
        areas = [int(np.count_nonzero(mask())) for mask in masks]
        return paint_smaller_over(masks, areas, (image.height, image.width), names=names, of=image.picture)

    def notes(self, found: Annotations) -> Iterable[str]:
        """Returns what the reader notes, and how many annotations of a crowd are left out."""
        yield from found.notes
        crowds = [(one, item) for one in found.images.values() for item in self._chosen(one) if item.crowd]
        if crowds:
            one, item = crowds[0]
            such = f"{one.picture.name}, {item.label}"
            yield f"{one.source}: {len(crowds)} annotation(s) of a crowd, such as {such}, are no objects; left out"

    def _chosen(self, image: Annotated) -> list[Annotation]:
        return [item for item in image.objects if item.category not in self.left_out]


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder, or a part of it, has instances/, or pictures each with its masks."""
    places = [folder, *(folder / part for part in PARTS)]
    return any(map(has_objects, places)) and not any((folder / n).is_file() for n in LABEL_LISTS)


def kind_of(folder: Path, source: Source = ANY) -> MaskKind[ObjectFacts]:
    """Returns how the maps of a data folder are read: as they are, or drawn of the objects of its annotations.

    All categories count alike, or those that are chosen; an object named "background" never is one.

    Raises:
        ConfigError: a format without separate objects, annotations of several formats, or categories of maps.
        DataError: annotations that can't be read, or categories that they don't have.
    """
    has_maps = source.format == "auto" and recognises(folder)
    form = "pairs" if has_maps else source.resolved(folder)
    if form == "pairs" or not folder.is_dir():  # whose reading says so
        source.without_categories(folder)
        return OBJECTS
    if form not in SEPARATE:
        raise ConfigError(
            f"data.format: {form} does not tell objects of a category apart. Known: {', '.join(SEPARATE)}."
        )
    drawing = ObjectDrawing(left_out(source.categories, categories_of(form, folder), folder) | {GROUND})
    return replace(OBJECTS, scan=partial(scan_drawn, form, drawing), parts=FORMATS[form].parts)


def verify_folder(folder: Path, *, name: str | None) -> VerifyReport:
    """Checks all that a run would; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and instances has a name; leave it out")
    return verify_parts(folder, kind_of(folder))


def resolve_objects(
    folder: str | Path,
    *,
    split: SplitMode = "auto",
    seed: int = 0,
    given: Given = NONE_GIVEN,
    source: Source = ANY,
    pixels: Pixels = RGB,
) -> Splits[Pair]:
    """Checks a data folder and returns its parts; see `samtune.data.pair_splits.resolve_parts`.

    Args:
        source: in which format the folder is read, and with which categories; see `kind_of`.
        pixels: what the model takes of the images.
    """
    kind = replace(kind_of(Path(folder), source), pixels=pixels)
    return resolve_parts(folder, kind, split=split, seed=seed, given=given)


def _none(parts: Mapping[str, Mapping[Path, ObjectFacts]]) -> list[str]:
    """Returns a line where no map of train, or of all if there is no train, has an object, and per part to measure.

    Without an object in val there is no AP50 to choose epochs by, without one in test none to report.
    """
    train = parts.get("train")
    maps = train or {path: facts for part in parts.values() for path, facts in part.items()}
    if not maps or any(facts.objects for facts in maps.values()):
        empty = {part: found for part, found in parts.items() if found and not any(f.objects for f in found.values())}
        wanted = "no AP50 to measure; move images with an object there, or let another run.seed cut it"
        return [_without(f" of {part}", found, wanted) for part, found in empty.items()]
    return [_without(" of train" if train and len(parts) > 1 else "", maps, "nothing to learn")]


def _without(of: str, maps: Mapping[Path, ObjectFacts], so: str) -> str:
    return f"all {len(maps)} maps{of} are without an object, such as {told(next(iter(maps)))}: {so}"


OBJECTS = MaskKind(scan_objects, object_facts, _none, parts=partial(pair_folders, masks_in=FOLDER))
