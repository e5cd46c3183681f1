"""Is every pair of image and binary mask usable, and which belongs to train, val and test?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from samtune.config.pixels import RGB, Pixels
from samtune.data.formats.drawing import GROUND, Drawing, scan_drawn, told
from samtune.data.formats.table import ANY, FORMATS, Source, categories_of, left_out
from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError, DataError
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
    empty: Literal["refuse", "train", "skip"] = "train",
) -> Splits[Pair]:
    """Checks a data folder of binary masks and returns its parts; see `samtune.data.pair_splits.resolve_parts`.

    Args:
        source: in which format the folder is read, and with which categories; see `kind_of`.
        pixels: what the model takes of the images.
        empty: what images without an object are: an error, trained on, or left out later by who prompts for objects.
    """
    kind = replace(kind_of(Path(folder), source), pixels=pixels)
    if empty == "refuse":
        kind = replace(kind, check=_any_empty)
    splits = resolve_parts(folder, kind, split=split, seed=seed, given=given)
    if empty != "train":
        return splits
    parts = {part: getattr(splits, part) for part in PARTS}
    counts = {part: len(pairs) - len(with_object(pairs)) for part, pairs in parts.items()}
    if not any(counts.values()):
        return splits
    found = ", ".join(f"{count} of {len(parts[part])} in {part}" for part, count in counts.items())
    note = f"images without an object: {found}; they are trained on, and measured apart"
    return replace(splits, notes=[*splits.notes, note])


def with_object(pairs: Sequence[Pair]) -> list[Pair]:
    """Returns the pairs whose mask shows an object; the error of a mask that can't be read is raised."""
    found = []
    for pair, facts in zip(pairs, mask_facts([pair.mask for pair in pairs]), strict=True):
        if isinstance(facts, DataError):
            raise facts
        if facts.components:
            found.append(pair)
    return found


def _all_empty(parts: Mapping[str, Mapping[Path, MaskFacts]]) -> list[str]:
    """Returns a line where no mask of train, or of all if there is no train, has a foreground, and per part to measure.

    Without an object in val there is no Dice to choose epochs by, without one in test none to report.
    """
    train = parts.get("train")
    masks = train or {path: facts for part in parts.values() for path, facts in part.items()}
    if not masks or any(facts.components for facts in masks.values()):
        return [_none_to_measure(part, found) for part, found in parts.items() if found and not _with_object(found)]
    of = " of train" if train and len(parts) > 1 else ""
    wanted = "foreground must be 255 (or 1), background 0"
    return [f"all {len(masks)} masks{of} are empty, such as {told(next(iter(masks)))}: nothing to learn; {wanted}"]


def _none_to_measure(part: str, masks: Mapping[Path, MaskFacts]) -> str:
    wanted = "move images with an object there, or let another run.seed cut it"
    return (
        f"all {len(masks)} masks of {part} are empty, such as {told(next(iter(masks)))}: no Dice to measure; {wanted}"
    )


def _with_object(masks: Mapping[Path, MaskFacts]) -> list[Path]:
    return [path for path, facts in masks.items() if facts.components]


def _any_empty(parts: Mapping[str, Mapping[Path, MaskFacts]]) -> list[str]:
    """Returns a line where a mask has no foreground."""
    if wrong := _all_empty(parts):
        return wrong
    masks = {path: facts for part in parts.values() for path, facts in part.items()}
    if not (empty := [path for path, facts in masks.items() if not facts.components]):
        return []
    remedy = "data.empty=train trains on them and counts them apart; or take them out, if an object is missing there"
    return [f"{len(empty)} of {len(masks)} masks show no object, such as {told(empty[0])}: {remedy}"]


BINARY = MaskKind(scan_folder, mask_facts, _all_empty)
