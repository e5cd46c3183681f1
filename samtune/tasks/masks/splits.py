"""Is every pair of image and binary mask usable, and which belongs to train, val and test?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError, DataError
from samtune.tasks.binary import MaskFacts, mask_facts


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder looks like one of pairs: images/ or masks/, and no list of classes."""
    places = [folder, *(folder / part for part in PARTS)]
    pairs = any((place / name).is_dir() for place in places for name in ("images", "masks"))
    return pairs and not any((folder / name).is_file() for name in LABEL_LISTS)


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks all that a run would: layout, lists, every pair, images in two parts; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and masks has a name; leave it out")
    return verify_parts(Path(folder), BINARY)


def resolve_split(
    folder: str | Path,
    *,
    split: SplitMode = "auto",
    seed: int = 0,
    given: Given = NONE_GIVEN,
    empty: Literal["refuse", "train", "skip"] = "train",
) -> Splits[Pair]:
    """Checks a data folder of binary masks and returns its parts; see `samtune.data.pair_splits.resolve_parts`.

    Args:
        empty: what images without an object are: an error, trained on, or left out later by who prompts for objects.
    """
    splits = resolve_parts(folder, STRICT if empty == "refuse" else BINARY, split=split, seed=seed, given=given)
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
    return [f"all {len(masks)} masks{of} are empty, such as {next(iter(masks))}: nothing to learn; {wanted}"]


def _none_to_measure(part: str, masks: Mapping[Path, MaskFacts]) -> str:
    wanted = "move images with an object there, or let another run.seed cut it"
    return f"all {len(masks)} masks of {part} are empty, such as {next(iter(masks))}: no Dice to measure; {wanted}"


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
    return [f"{len(empty)} of {len(masks)} masks show no object, such as {empty[0]}: {remedy}"]


BINARY = MaskKind(scan_folder, mask_facts, _all_empty)
STRICT = MaskKind(scan_folder, mask_facts, _any_empty)
