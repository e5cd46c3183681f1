"""Is every pair of a data folder usable, and which belongs to train, val and test: by folder, list of names or cut?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, get_args

from samtune.config.pixels import Pixels
from samtune.data.channels.check import check_pixels
from samtune.data.facts import ImageFacts, group_near, hash_images, image_facts
from samtune.data.formats.drawing import told
from samtune.data.pairs import Pair, Scan
from samtune.data.pictures import LARGEST_PIXELS, MAX_PIXELS, too_small
from samtune.data.splits import (
    NONE_GIVEN,
    PARTS,
    Given,
    Reader,
    Splits,
    cut_groups,
    near_note,
    put_given,
    repeated,
    same_image,
)
from samtune.data.verify import VerifyReport, list_problems
from samtune.errors import DataError, unknown_name

SplitMode = Literal["auto", "folders", "files", "ratio"]
Parts = dict[str, list[Pair]]
Named = dict[str, str | Path]
RATIOS = (0.8, 0.1, 0.1)  # of train, val and test; the last two are also what a missing part takes of train


class FileFacts(Protocol):
    """What is known of every file, see `ImageFacts`."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def orientation(self) -> int: ...

    @property
    def oddities(self) -> list[str]: ...


AnyFacts = TypeVar("AnyFacts", bound=FileFacts)
MaskT = TypeVar("MaskT", bound=FileFacts)
Seen = Mapping[Pair, tuple[ImageFacts | DataError, MaskT | DataError]]


def pair_folders(folder: Path, masks_in: str = "masks") -> dict[str, Path]:
    """Returns the folders of parts that a data folder of images and masks has; none where it has both itself.

    Args:
        masks_in: name of the folder beside images/ that holds the masks.
    """
    folders = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if any((place / name).is_dir() for place in folders.values() for name in ("images", masks_in)):
        return folders
    return {} if (folder / "images").is_dir() or (folder / masks_in).is_dir() else folders


@dataclass(frozen=True)
class MaskKind(Generic[MaskT]):
    """How a task reads its pairs.

    Attributes:
        scan: finds them, such as `samtune.data.pairs.scan_folder`.
        facts: returns those of mask files; where one can't be used, the error that says why.
        check: returns a line per problem of the masks of all parts together, from those that can be read.
        parts: returns the places of the parts that a data folder has, which `scan` takes.
        pixels, tuned: what the model takes of the images, as for `check_pixels`.
    """

    scan: Scan
    facts: Callable[[Sequence[Path]], Sequence[MaskT | DataError]]
    check: Callable[[Mapping[str, Mapping[Path, MaskT]]], list[str]]
    parts: Callable[[Path], Mapping[str, Path]] = pair_folders
    pixels: Pixels | None = None
    tuned: bool = False


def verify_parts(folder: Path, kind: MaskKind[MaskT]) -> VerifyReport:
    """Checks all that a run would: layout, lists, every pair, images in two parts."""
    return _survey(folder, kind, "auto", NONE_GIVEN)[1]


def check_pairs(pairs: Iterable[Pair], kind: MaskKind[MaskT]) -> VerifyReport:
    """Checks what a run is about to use, in order of the image files; a `DataError` lists every bad one and why."""
    report = verify_pairs(sorted(pairs, key=lambda pair: str(pair.image)), kind)
    if report.errors:
        raise DataError(list_problems("the data can't be used", report.errors))
    return report


def verify_pairs(pairs: Iterable[Pair], kind: MaskKind[MaskT]) -> VerifyReport:
    """Checks every pair.

    Errors stop a run; warnings are of what is accepted, by a stated rule, and that a user may want to know.
    """
    seen = _see(pairs, kind)
    report = _check(seen, kind)
    return VerifyReport((*report.errors, *kind.check({"all": _readable(seen, seen)})), report.warnings)


def _see(pairs: Iterable[Pair], kind: MaskKind[MaskT]) -> Seen[MaskT]:
    """Returns what the two files of each pair show; files that are new or changed are decoded, once."""
    pairs = list(dict.fromkeys(pairs))
    most = LARGEST_PIXELS if kind.pixels is None or kind.pixels.large else MAX_PIXELS
    images, masks = image_facts([pair.image for pair in pairs], most=most), kind.facts([pair.mask for pair in pairs])
    return dict(zip(pairs, zip(images, masks, strict=True), strict=True))


def _readable(seen: Seen[MaskT], pairs: Iterable[Pair]) -> dict[Path, MaskT]:
    """Returns the facts of the masks of these pairs that can be read."""
    return {pair.mask: facts for pair in pairs if not isinstance(facts := seen[pair][1], DataError)}


def _check(seen: Seen[MaskT], kind: MaskKind[MaskT]) -> VerifyReport:
    errors, warnings = list[str](), list[str]()
    images: dict[Path, ImageFacts] = {}
    for pair, (found_image, found_mask) in seen.items():
        image, mask = _usable(pair.image, found_image, errors), _usable(pair.mask, found_mask, errors)
        for path, facts in ((pair.image, image), (pair.mask, mask)):
            warnings += [f"{told(path)}: {oddity}" for oddity in (facts.oddities if facts else ())]
        if image is not None:
            images[pair.image] = image
        if image is not None and mask is not None:
            _compare(pair, image, mask, errors, warnings)
    pixels = check_pixels(images, kind.pixels, tuned=kind.tuned)
    return VerifyReport((*errors, *pixels.errors), (*warnings, *pixels.warnings))


def _usable(path: Path, facts: AnyFacts | DataError, errors: list[str]) -> AnyFacts | None:
    """Returns the facts of a file that can be used; else None, with the reason in `errors`."""
    if isinstance(facts, DataError):
        errors.append(str(facts))
    elif problem := too_small(facts.width, facts.height):
        errors.append(f"{path}: {problem}")
    else:
        return facts
    return None


def _compare(pair: Pair, image: FileFacts, mask: FileFacts, errors: list[str], warnings: list[str]) -> None:
    if image.orientation != mask.orientation:
        found = f"EXIF orientation {image.orientation}, but {mask.orientation} in its mask"
        errors.append(f"{pair.image}: {found}; save both files upright, without the tag")
    elif (image.width, image.height) != (mask.width, mask.height):
        found = f"mask {mask.width} x {mask.height}, image {image.width} x {image.height}"
        drawn = told(pair.mask) != str(pair.mask)
        remedy = "annotate the picture as it is" if drawn else "export the mask again at the image's size"
        errors.append(f"{told(pair.mask)}: size mismatch, {found}; {remedy}")
    elif image.orientation != 1:
        warnings.append(f"{pair.image}: EXIF orientation {image.orientation} on image and mask, applied to both")


def resolve_parts(
    folder: str | Path, kind: MaskKind[MaskT], *, split: SplitMode = "auto", seed: int = 0, given: Given = NONE_GIVEN
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
    parts, report = _survey(folder, kind, split, given)
    errors = list(report.errors)
    if not parts.get("train") and not errors:
        found = ", ".join(parts) or "nothing"
        errors.append(f"{folder}: no training part (found: {found}); add train/ or data.train")
    if errors:
        raise DataError(list_problems(f"{folder} can't be used", errors))
    notes: list[str] = []
    cut = _cut_missing(folder, parts, seed, notes)
    seen = _see((pair for part in PARTS for pair in cut[part]), kind)
    if wrong := kind.check({part: _readable(seen, cut[part]) for part in PARTS}):  # what train lacks may be held out
        raise DataError(list_problems(f"{folder} can't be used", wrong) if len(wrong) > 1 else f"{folder}: {wrong[0]}")
    return Splits(cut["train"], cut["val"], cut["test"], [*notes, *report.summary()])


def _survey(folder: Path, kind: MaskKind[MaskT], split: SplitMode, given: Given) -> tuple[Parts, VerifyReport]:
    """Reads the parts that are there, and everything in them; what is wrong with any is in the report."""
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; set data.dir, or see data/README.md to get one")
    problems: list[str] = []
    notes: list[str] = []

    def scan(place: Path) -> list[Pair]:
        pairs, found = kind.scan(place)
        problems.extend(line for line in found if line not in problems)
        return pairs

    places = kind.parts(folder)
    parts = _found_parts(folder, places, scan, split, given.parts(), problems, notes)
    reader = Reader(
        folder=scan,
        file=lambda path: _named(path, scan(folder), problems),
        path_of=lambda pair: pair.image,
        wanted="a folder nor a list of names",
    )
    problems += put_given(parts, given, folder, reader)
    where = [(part, pair) for part in PARTS for pair in parts.get(part, [])]
    seen = _see((pair for _, pair in where), kind)
    report = _check(seen, kind)
    together = kind.check({part: _readable(seen, pairs) for part, pairs in parts.items()})
    errors = (*problems, *report.errors, *together, *_shared_images(where, seen, notes))
    return parts, VerifyReport(errors, (*notes, *report.warnings))


def _found_parts(
    folder: Path,
    places: Mapping[str, Path],
    scan: Callable[[Path], list[Pair]],
    split: SplitMode,
    given: Named,
    problems: list[str],
    notes: list[str],
) -> Parts:
    """Returns the published parts, or all pairs as "train"."""
    lists = [part for part in PARTS if (folder / "splits" / f"{part}.txt").is_file()]
    if split == "auto":
        split = "folders" if places else "files" if lists else "ratio"
    if split == "folders":
        if not places and "train" not in given:
            problems.append(f"no train/, val/ or test/ of images and their masks in {folder}")
        return {part: scan(place) for part, place in places.items() if part not in given}
    if split == "files":
        if not lists:
            problems.append(f"no splits/train.txt, val.txt or test.txt in {folder}")
        wanted = [part for part in lists if part not in given]
        pairs = scan(folder) if wanted else []
        found = {part: _named(folder / "splits" / f"{part}.txt", pairs, problems) for part in wanted}
        if unused := {pair.name for pair in pairs} - {pair.name for part in found.values() for pair in part}:
            notes.append(f"{len(unused)} image(s) are in no list of splits/ and not used")
        return found
    return {} if "train" in given else {"train": scan(folder)}


def _named(path: Path, pairs: list[Pair], problems: list[str]) -> list[Pair]:
    """Returns the pairs that a text file names, one stem (or file name) per line."""
    by_name = {pair.name: pair for pair in pairs} | {pair.image.name: pair for pair in pairs}
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: can't be read ({error}); save it as a text file in UTF-8, one name per line")
        return []
    absent = sorted({name for name in names if name not in by_name})
    problems += [f"{path}: names {name}, which is not in images/ with a mask" for name in absent]
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


def _shared_images(where: Sequence[tuple[str, Pair]], seen: Seen[MaskT], notes: list[str]) -> list[str]:
    """Returns a line for each image that is in two parts; near-duplicates in two parts are noted."""
    places, images = [], []
    for part, pair in where:
        if isinstance(facts := seen[pair][0], ImageFacts):
            places.append((part, pair.image))
            images.append(facts)
    notes += near_note(places, images)
    found = repeated(places, [facts.content for facts in images])
    return [f"{same_image(*line)}; take it out of one part" for line in found]
