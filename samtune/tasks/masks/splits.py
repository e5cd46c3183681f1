"""Is every pair of a data folder usable, and which belongs to train, val and test: by folder, list of names or cut?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar, get_args

from samtune.data.facts import ImageFacts, group_near, hash_images, image_facts, near_pairs
from samtune.data.splits import LABEL_LISTS, NONE_GIVEN, PARTS, Given, Reader, Splits, cut_groups, put_given, repeated
from samtune.data.verify import VerifyReport, list_problems
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.tasks.masks.pairs import MaskFacts, Pair, mask_facts, scan_folder

MIN_SIDE = 8  # pixels; nothing smaller can be segmented at a quarter of its size

FactsT = TypeVar("FactsT", ImageFacts, MaskFacts)
SplitMode = Literal["auto", "folders", "files", "ratio"]
Parts = dict[str, list[Pair]]
Named = dict[str, str | Path]
RATIOS = (0.8, 0.1, 0.1)  # of train, val and test; the last two are also what a missing part takes of train


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder looks like one of pairs: images/ or masks/, and no list of classes."""
    places = [folder, *(folder / part for part in PARTS)]
    pairs = any((place / name).is_dir() for place in places for name in ("images", "masks"))
    return pairs and not any((folder / name).is_file() for name in LABEL_LISTS)


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a folder, with or without parts, and every pair in it; any name is a `ConfigError`."""
    if name is not None:
        raise ConfigError(f"{name!r} names a data set, and none of images and masks has a name; leave it out")
    parts = [Path(folder, part) for part in PARTS if Path(folder, part).is_dir()] or [Path(folder)]
    scans = [scan_folder(part) for part in parts]
    problems = [line for _, lines in scans for line in lines]
    report = verify_pairs(pair for pairs, _ in scans for pair in pairs)
    return VerifyReport((*problems, *report.errors), report.warnings)


def check_pairs(pairs: Iterable[Pair]) -> VerifyReport:
    """Checks what a run is about to use, in order of the image files; a `DataError` lists every bad one and why."""
    report = verify_pairs(sorted(pairs, key=lambda pair: str(pair.image)))
    if report.errors:
        raise DataError(list_problems("the data can't be used", report.errors))
    return report


def verify_pairs(pairs: Iterable[Pair]) -> VerifyReport:
    """Checks every pair; files that are new or changed are decoded, once.

    Errors stop a run; warnings are of what is accepted, by a stated rule, and that a user may want to know.
    """
    pairs = list(pairs)
    errors: list[str] = []
    warnings: list[str] = []
    counts: list[int] = []
    images, masks = image_facts([pair.image for pair in pairs]), mask_facts([pair.mask for pair in pairs])
    for pair, found_image, found_mask in zip(pairs, images, masks, strict=True):
        image, mask = _usable(pair.image, found_image, errors), _usable(pair.mask, found_mask, errors)
        for path, facts in ((pair.image, image), (pair.mask, mask)):
            warnings += [f"{path}: {oddity}" for oddity in (facts.oddities if facts else ())]
        if mask is not None:
            counts.append(mask.components)
        if image is not None and mask is not None:
            _compare(pair, image, mask, errors, warnings)
    if counts and not any(counts):
        wanted = "foreground must be 255 (or 1), background 0"
        errors.append(f"all {len(counts)} masks are empty: nothing to learn; {wanted}")
    return VerifyReport(tuple(errors), tuple(warnings))


def _usable(path: Path, facts: FactsT | DataError, errors: list[str]) -> FactsT | None:
    """Returns the facts of a file that can be used; else None, with the reason in `errors`."""
    if isinstance(facts, DataError):
        errors.append(str(facts))
    elif min(facts.width, facts.height) < MIN_SIDE:
        size = f"{facts.width} x {facts.height}"
        errors.append(f"{path}: {size} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")
    else:
        return facts
    return None


def _compare(pair: Pair, image: ImageFacts, mask: MaskFacts, errors: list[str], warnings: list[str]) -> None:
    if image.orientation != mask.orientation:
        found = f"EXIF orientation {image.orientation}, but {mask.orientation} in its mask"
        errors.append(f"{pair.image}: {found}; save both files upright, without the tag")
    elif (image.width, image.height) != (mask.width, mask.height):
        found = f"mask {mask.width} x {mask.height}, image {image.width} x {image.height}"
        errors.append(f"{pair.mask}: size mismatch, {found}; export the mask again at the image's size")
    elif image.orientation != 1:
        warnings.append(f"{pair.image}: EXIF orientation {image.orientation} on image and mask, applied to both")


def resolve_split(
    folder: str | Path, *, split: SplitMode = "auto", seed: int = 0, given: Given = NONE_GIVEN
) -> Splits[Pair]:
    """Checks a data folder and returns its parts, each sorted by name.

    Args:
        folder: holds `train/`, `val/`, `test/` (each with `images/` and `masks/`), or `images/` and `masks/`
            with or without lists of names `splits/train.txt`, `val.txt`, `test.txt`.
        split: "folders", "files" and "ratio" force one of these; "auto" takes the first that is there.
        seed: of the cuts that are made here.
        given: parts elsewhere: a folder with `images/` and `masks/`, or a text file of names in `folder`.

    Raises:
        DataError: the folder has none of these layouts, pairs are incomplete, files are bad, a list names an absent
            file, parts share an image, or there are too few images.
    """
    folder = Path(folder)
    if split not in get_args(SplitMode):
        raise DataError(unknown_name("split", split, get_args(SplitMode)))
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; set data.dir, or see data/README.md to get one")
    problems: list[str] = []
    notes: list[str] = []
    parts = _found_parts(folder, split, given.parts(), problems, notes)
    reader = Reader(
        folder=lambda path: _scan(path, problems),
        file=lambda path: _named(path, _scan(folder, problems), problems),
        path_of=lambda pair: pair.image,
        wanted="a folder nor a list of names",
    )
    problems += put_given(parts, given, folder, reader)
    if problems:
        known = [pair for pairs in parts.values() for pair in pairs]
        raise DataError(list_problems(f"{folder} can't be split", [*problems, *verify_pairs(known).errors]))
    if not parts.get("train"):
        found = ", ".join(parts) or "nothing"
        raise DataError(f"{folder}: no training part (found: {found}); add train/ or data.train")
    report = check_pairs([pair for part in PARTS for pair in parts.get(part, [])])  # before a bad file stops a hash
    cut = _cut_missing(folder, parts, seed, notes)
    return Splits(cut["train"], cut["val"], cut["test"], [*notes, *_shared_images(folder, cut), *report.summary()])


def _found_parts(folder: Path, split: SplitMode, given: Named, problems: list[str], notes: list[str]) -> Parts:
    """Returns the published parts, or all pairs as "train"."""
    folders = [part for part in PARTS if (folder / part / "images").is_dir() or (folder / part / "masks").is_dir()]
    lists = [part for part in PARTS if (folder / "splits" / f"{part}.txt").is_file()]
    if split == "auto":
        split = "folders" if folders else "files" if lists else "ratio"
    if split == "folders":
        if not folders and "train" not in given:
            problems.append(f"no train/, val/ or test/ with images/ and masks/ in {folder}")
        return {part: _scan(folder / part, problems) for part in folders if part not in given}
    if split == "files":
        if not lists:
            problems.append(f"no splits/train.txt, val.txt or test.txt in {folder}")
        wanted = [part for part in lists if part not in given]
        pairs = _scan(folder, problems) if wanted else []
        found = {part: _named(folder / "splits" / f"{part}.txt", pairs, problems) for part in wanted}
        if unused := {pair.name for pair in pairs} - {pair.name for part in found.values() for pair in part}:
            notes.append(f"{len(unused)} image(s) are in no list of splits/ and not used")
        return found
    return {} if "train" in given else {"train": _scan(folder, problems)}


def _scan(folder: Path, problems: list[str]) -> list[Pair]:
    pairs, found = scan_folder(folder)
    problems += [line for line in found if line not in problems]
    return pairs


def _named(path: Path, pairs: list[Pair], problems: list[str]) -> list[Pair]:
    """Returns the pairs that a text file names, one stem (or file name) per line."""
    by_name = {pair.name: pair for pair in pairs} | {pair.image.name: pair for pair in pairs}
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    absent = sorted({name for name in names if name not in by_name})
    problems += [f"{path}: names {name}, which is not in images/ and masks/" for name in absent]
    if not names:
        problems.append(f"{path}: empty; one name per line, or delete it")
    return sorted({by_name[name] for name in names if name in by_name}, key=lambda pair: pair.name)


def _cut_missing(folder: Path, parts: Parts, seed: int, notes: list[str]) -> Parts:
    """Cuts missing parts from train; near-duplicates stay together."""
    missing = {part: ratio for part, ratio in zip(PARTS, RATIOS, strict=True) if part not in parts}
    if not missing:
        return parts
    pairs = parts["train"]
    groups = group_near(hash_images([pair.image for pair in pairs]))
    counts = {part: max(1, round(len(pairs) * ratio)) for part, ratio in missing.items()}
    chosen = cut_groups(groups, counts, seed)
    cut = parts | {part: [pairs[i] for i in sorted(indices)] for part, indices in chosen.items()}
    if not all(cut[part] for part in ("train", *missing)):
        few = f"{len(pairs)} images in {len(groups)} group(s) of near-duplicates are too few to cut"
        wanted = f"{' and '.join(missing)} from train; add images or give the parts as folders"
        raise DataError(f"{folder}: {few} {wanted}")
    sizes = ", ".join(f"{len(cut[part])} {part}" for part in PARTS)
    notes.append(f"{' and '.join(missing)} cut from train with seed {seed}, near-duplicates kept together: {sizes}")
    return cut


def _shared_images(folder: Path, parts: Parts) -> list[str]:
    """Refuses identical images in two parts; returns a note on near-duplicates between parts."""
    where = [(part, pair) for part in PARTS for pair in parts[part]]
    images = hash_images([pair.image for _, pair in where])
    if same := repeated(where, [facts.content for facts in images]):
        lines = [f"{other}/{twin.image.name} and {part}/{pair.image.name}" for part, pair, other, twin in same]
        raise DataError(list_problems(f"{folder}: the same image is in two parts; take it out of one", lines))
    pairs = [(*where[i], *where[j]) for i, j in near_pairs(images)]
    near = [f"{a}/{one.image.name} and {b}/{two.image.name}" for a, one, b, two in pairs if a != b]
    if not near:
        return []
    return [f"{len(near)} near-duplicate pair(s) across parts of a published split: {'; '.join(near)}"]
