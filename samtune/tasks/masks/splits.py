"""Is every pair of image and binary mask usable, and which belongs to train, val and test?"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from samtune.config.pixels import RGB, Pixels
from samtune.data.formats.drawing import GROUND, Drawing, scan_drawn
from samtune.data.formats.table import ANY, FORMATS, Source, categories_of, left_out
from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
from samtune.tasks.binary import MaskFacts, mask_facts

FOREGROUND = 255


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder looks like one of pairs: images/ or masks/, and no list of classes."""
    places = [folder, *(folder / part for part in PARTS)]
    pairs = any((place / name).is_dir() for place in places for name in ("images", "masks"))
    return pairs and not any((folder / name).is_file() for name in LABEL_LISTS)


def kind_of(folder: Path, source: Source = ANY) -> MaskKind[MaskFacts]:
    """Returns how the masks of a data folder are read: as they are, or drawn of the objects of its annotations.

    All objects are the foreground, or those of the chosen categories; an object named "background" never is.

    Raises:
        ConfigError: annotations of several formats, or categories of masks without any.
        DataError: annotations that can't be read, or categories that they don't have.
    """
    form = source.resolved(folder)
    if form == "pairs":
        source.without_categories(folder)
        return BINARY
    if not folder.is_dir():
        return BINARY  # whose reading says so
    known = categories_of(form, folder)
    skipped = left_out(source.categories, known, folder) | {GROUND}
    drawing = Drawing({name: FOREGROUND for name in known if name not in skipped}, 0, skipped)
    return replace(BINARY, scan=partial(scan_drawn, form, drawing), parts=FORMATS[form].parts)


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks all that a run would: layout, lists, every pair, images in two parts; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and masks has a name; leave it out")
    return verify_parts(Path(folder), kind_of(Path(folder)))


def resolve_split(
    folder: str | Path,
    *,
    split: SplitMode = "auto",
    seed: int = 0,
    given: Given = NONE_GIVEN,
    source: Source = ANY,
    pixels: Pixels = RGB,
) -> Splits[Pair]:
    """Checks a data folder of binary masks and returns its parts; see `samtune.data.pair_splits.resolve_parts`.

    Args:
        source: in which format the folder is read, and with which categories; see `kind_of`.
        pixels: what the model takes of the images.
    """
    kind = replace(kind_of(Path(folder), source), pixels=pixels)
    return resolve_parts(folder, kind, split=split, seed=seed, given=given)


def _all_empty(parts: Mapping[str, Mapping[Path, MaskFacts]]) -> list[str]:
    """Returns a line where no mask of train, or of all if there is no train, has a foreground."""
    train = parts.get("train")
    masks = train or {path: facts for part in parts.values() for path, facts in part.items()}
    if not masks or any(facts.components for facts in masks.values()):
        return []
    of = " of train" if train and len(parts) > 1 else ""
    wanted = "foreground must be 255 (or 1), background 0"
    return [f"all {len(masks)} masks{of} are empty, such as {next(iter(masks))}: nothing to learn; {wanted}"]


BINARY = MaskKind(scan_folder, mask_facts, _all_empty)
