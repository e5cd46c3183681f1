"""Is every pair of image and binary mask usable, and which belongs to train, val and test?"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from samtune.config.pixels import RGB, Pixels
from samtune.data.pair_splits import MaskKind, SplitMode, resolve_parts, verify_parts
from samtune.data.pairs import Pair, scan_folder
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Splits
from samtune.data.verify import VerifyReport
from samtune.errors import ConfigError
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
    folder: str | Path, *, split: SplitMode = "auto", seed: int = 0, given: Given = NONE_GIVEN, pixels: Pixels = RGB
) -> Splits[Pair]:
    """Checks a data folder of binary masks and returns its parts; see `samtune.data.pair_splits.resolve_parts`."""
    return resolve_parts(folder, replace(BINARY, pixels=pixels), split=split, seed=seed, given=given)


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
