"""Is every pair of image and map of objects usable, and which belongs to train, val and test?"""

from collections.abc import Mapping
from pathlib import Path

from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.tasks.instances.layouts import FOLDER, scan_objects
from samtune.tasks.instances.objects import ObjectFacts, object_facts


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


OBJECTS = MaskKind(scan_objects, object_facts, _none, folder=FOLDER)
