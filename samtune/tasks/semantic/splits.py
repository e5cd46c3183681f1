"""Is every pair of image and map usable, which classes are there, and what belongs to train, val and test?"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from samtune.config.pixels import RGB, Pixels
from samtune.data.formats.drawing import GROUND, Drawing, scan_drawn, told
from samtune.data.formats.table import ANY, FORMATS, Source, find_format, left_out, names_classes
from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError, DataError
from samtune.tasks.semantic.layouts import has_class_folders, labels_of, scan_class_folders
from samtune.tasks.semantic.maps import ClassTable, MapFacts, map_facts
from samtune.types import IGNORE

logger = logging.getLogger(__name__)

Names = Mapping[int, str]
MOST_CLASSES = 64
"""Values of one mask up to which it is taken for a map of classes, not for a grey picture."""
Maps = Mapping[str, Mapping[Path, MapFacts]]
"""Part to the maps in it that can be read."""


class Wanted(NamedTuple):
    """What is known of the classes of a data folder.

    Attributes:
        names: by value, as the user gives them; None for those found.
        labels: by value, as the folder names them itself; {} where it has values only.
        ignore: value of the pixels that do not count.
        trains: every class must be there to learn.
    """

    names: Names | None
    labels: Names
    ignore: int
    trains: bool

    def found(self, facts: Iterable[MapFacts]) -> Names:
        """Returns the names by value: those given, or of the values that are found."""
        if self.names is not None:
            return self.names
        values = {value for found in facts for value in found.values()} - {self.ignore}
        return {value: self.labels.get(value, f"class {value}") for value in sorted(values)}


@dataclass(frozen=True)
class MapSplits(Splits[Pair]):
    """The disjoint parts, and the classes of their maps."""

    table: ClassTable = field(kw_only=True)

    def with_few(self, shots: int, seed: int) -> Self:
        """Returns the same parts with so many images of train; the note says which classes these do not show."""
        few = super().with_few(shots, seed)
        facts = [found for found in map_facts([pair.mask for pair in few.train]) if not isinstance(found, DataError)]
        shown = set().union(*(found.values() for found in facts))
        absent = [name for name, value in zip(self.table.names, self.table.values, strict=True) if value not in shown]
        if not absent:
            return few
        note = f"they do not show {', '.join(absent)}, which can't be learned; raise data.shots, or take another seed"
        return replace(few, notes=[few.notes[0], note, *self.notes])


def kind_of(
    folder: Path,
    names: Names | None,
    ignore: int,
    *,
    trains: bool = True,
    source: Source = ANY,
    pixels: Pixels | None = None,
) -> MaskKind[MapFacts]:
    """Returns how the maps of a data folder are read whose classes have these names, or are those found.

    Args:
        trains: every class must be there to learn; else maps are only measured against.
        source: in which format the folder is read, and which of its categories are classes.
        pixels: what the model takes of the images; None where there is no model yet.

    Raises:
        ConfigError: annotations of several formats, or categories of maps without names.
        DataError: annotations that can't be read, or categories that they don't have.
    """
    kind, _ = _reading(folder, Wanted(names, {}, ignore, trains), source)
    return replace(kind, pixels=pixels, tuned=not trains)


def resolve_maps(
    folder: str | Path,
    *,
    names: Names | None,
    ignore: int,
    split: SplitMode = "auto",
    seed: int = 0,
    given: Given = NONE_GIVEN,
    source: Source = ANY,
    pixels: Pixels = RGB,
) -> MapSplits:
    """Checks a data folder and returns its parts; arguments and errors as of `samtune.data.pair_splits.resolve_parts`.

    Args:
        names: of the classes, by value; None for a class per value that is found, which is said.
        ignore: value of the pixels that do not count.
        source: see `kind_of`.
    """
    folder = Path(folder)
    kind, wanted = _reading(folder, Wanted(names, {}, ignore, True), source)
    kind = replace(kind, pixels=pixels)
    parts = resolve_parts(folder, kind, split=split, seed=seed, given=given)
    facts = map_facts([pair.mask for part in PARTS for pair in getattr(parts, part)])
    table = ClassTable.of(wanted.found(found for found in facts if not isinstance(found, DataError)), ignore)
    logger.info("%d classes: %s; value %d does not count", len(table.names), table.text(), ignore)
    return MapSplits(parts.train, parts.val, parts.test, parts.notes, table=table)


def _reading(folder: Path, wanted: Wanted, source: Source) -> tuple[MaskKind[MapFacts], Wanted]:
    """Returns how a data folder is read, and what is wanted with the classes that it names itself."""
    form = _form(folder, source)
    found = labels_of(folder, form) if folder.is_dir() else {}
    if not found and form == "pairs":
        source.without_categories(folder)
    skipped = left_out(source.categories, list(found.values()), folder) - {GROUND} if found else frozenset[str]()
    direct = form == "index" and source.categories is None
    if direct:
        labels = {value: name for value, name in found.items() if value != wanted.ignore}
    else:  # what is not chosen is background
        kept = [name for name in found.values() if name not in skipped and name != GROUND]
        labels = dict(enumerate([GROUND, *kept])) if kept else {}
    wanted = wanted._replace(labels=labels)
    facts, check = partial(_facts, wanted), partial(_check, wanted)
    if direct or not labels:
        return MaskKind(scan_folder, facts, check), wanted
    values = {name: value for value, name in (wanted.names or labels).items()}
    drawing = Drawing(values, values.get(GROUND, wanted.ignore), skipped)
    if form == "pairs":
        return MaskKind(partial(scan_class_folders, drawing), facts, check), wanted
    return MaskKind(partial(scan_drawn, form, drawing), facts, check, FORMATS[form].parts), wanted


def _form(folder: Path, source: Source) -> str:
    """Returns the format of a data folder; masks beside a list of their classes are index pictures, which is said."""
    form = source.resolved(folder)
    if source.format == "auto" and form == "pairs" and names_classes(folder) and not has_class_folders(folder):
        logger.info("%s: classes are named by the list beside the masks (data.format: index)", folder)
        return "index"
    return form


def most_frequent(pairs: Iterable[Pair], table: ClassTable) -> int:
    """Returns the place of the class with the most pixels in the maps of these pairs."""
    counts: Counter[int] = Counter()
    for facts in map_facts([pair.mask for pair in pairs]):
        if not isinstance(facts, DataError):
            counts.update(dict(facts.pixels))
    return max(range(len(table.values)), key=lambda place: counts[table.values[place]])


def recognises(folder: Path) -> bool:
    """Tells whether a folder names classes of pixels, or the first of its masks is a map of three classes or more."""
    if any((folder / name).is_file() for name in LABEL_LISTS):
        return False
    if has_class_folders(folder) or find_format(folder) != "pairs":
        return True
    for place in (folder, *(folder / part for part in PARTS)):
        pairs, _ = scan_folder(place)
        if pairs:
            (facts,) = map_facts([pairs[0].mask])
            if isinstance(facts, DataError):
                return False
            named = names_classes(folder) and not facts.values() <= {0, IGNORE}
            return named or 2 < len(facts.pixels) <= MOST_CLASSES
    return False


def verify_folder(folder: Path, *, name: str | None) -> VerifyReport:
    """Checks all that a run without `data.classes` would; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and masks has a name; leave it out")
    return verify_parts(folder, kind_of(folder, None, IGNORE))


def _facts(wanted: Wanted, paths: Sequence[Path]) -> list[MapFacts | DataError]:
    """Returns what files show: an error where a value is of no class, an oddity where no pixel counts."""
    names, ignore, found = wanted.names, wanted.ignore, list[MapFacts | DataError]()
    for path, facts in zip(paths, map_facts(paths), strict=True):
        if not isinstance(facts, DataError):
            strange = sorted(facts.values() - {*names, ignore}) if names is not None else []
            if strange and names is not None:
                facts = DataError(ClassTable.of(names, ignore).strange(path, strange))
            elif facts.values() == {ignore}:
                facts = facts._replace(oddities=[f"every pixel is data.ignore_index ({ignore}): it counts nowhere"])
        found.append(facts)
    return found


def _check(wanted: Wanted, parts: Maps) -> list[str]:
    """Returns what is wrong with the maps of all parts together, as far as they can be read."""
    maps = {path: facts for part in parts.values() for path, facts in part.items()}
    if not maps:
        return []
    return [*_mixed(maps), *(_unlearnable(wanted, parts, maps) if wanted.trains else ())]


def _unlearnable(wanted: Wanted, parts: Maps, maps: Mapping[Path, MapFacts]) -> list[str]:
    """Returns why the classes can't be learned from train, or from all maps where there are no parts."""
    train, ignore = parts.get("train") or maps, wanted.ignore
    of = " of train" if parts.get("train") and len(parts) > 1 else ""
    trained = set().union(*(facts.values() for facts in train.values())) - {ignore}
    if not trained:
        some = f"all {len(train)} masks{of} are data.ignore_index ({ignore}) only, such as {told(next(iter(train)))}"
        return [f"{some}: nothing to learn"]
    names = wanted.found(maps.values())
    problems = []
    if len(names) == 1:
        one = next(iter(names))
        problems.append(f"one class only, value {one}: nothing to tell apart; binary masks are for task: segmentation")
    if len(names) >= IGNORE:
        problems.append(f"{len(names)} classes; at most {IGNORE - 1} are possible: are these maps of classes?")
    return problems + [_absent(value, name, maps) for value, name in names.items() if value not in trained]


def _absent(value: int, name: str, maps: Mapping[Path, MapFacts]) -> str:
    """Says that a class can't be learned, with a file that has it."""
    where = next((f", though {told(path)} has it" for path, facts in maps.items() if value in facts.values()), "")
    remedy = "add a picture of it to train, or " + ("make it data.ignore_index" if where else "take it out")
    return f"class {name!r} (value {value}) is in no mask of train{where}; {remedy}"


def _mixed(maps: Mapping[Path, MapFacts]) -> list[str]:
    """Returns a line where some maps are of a palette and others are grey: their values may not mean the same."""
    kinds = {palette: [path for path, facts in maps.items() if facts.palette == palette] for palette in (True, False)}
    if not all(kinds.values()):
        return []
    palette, grey = kinds[True], kinds[False]
    counts = f"{len(palette)} masks have a palette, such as {palette[0]}, and {len(grey)} are grey, such as {grey[0]}"
    return [f"{counts}: their values may not mean the same; save all in one way"]
