"""Checks the images of a data set of classes before anything is trained on it.

All problems are listed at once. What was seen in a file is remembered until it changes.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from samtune.data.cache import file_hashes
from samtune.data.facts import ImageFacts, near_across, rgb_facts
from samtune.data.pictures import too_small
from samtune.data.splits import LABEL_LISTS, PARTS, near_note, repeated, same_image
from samtune.data.verify import VerifyReport, list_problems
from samtune.errors import DataError
from samtune.tasks.classes.layouts.folders import Named, NamedParts
from samtune.tasks.classes.layouts.known import DATASETS, read_layout
from samtune.tasks.classes.views import check_shape

DECODED = {"train": 100_000, "val": 100_000, "test": 5_000}
"""Largest parts that are decoded before a run: VTAB-1k's test images and ImageNet's are too many for that."""
COMPARED = 100_000  # of more images than that, only the paths are compared between parts
NEAR = 10_000  # among more images than that, near-duplicates in two parts are not looked for
Seen = Mapping[Path, ImageFacts | DataError]


def recognises(folder: Path) -> bool:
    """Tells by names alone whether a folder has lists with labels, or folders without images/ and masks/ of pairs."""
    if not folder.is_dir():
        return False
    if any((folder / name).is_file() for name in LABEL_LISTS):
        return True
    places = [folder, *(folder / part for part in PARTS)]
    if any((place / name).is_dir() for place in places for name in ("images", "masks")):
        return False
    return any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def verify_folder(folder: str | Path, *, name: str | None = None) -> VerifyReport:
    """Checks the layout of a data folder (of class folders, or of a key of `DATASETS`) and decodes everything in it.

    Raises:
        ConfigError: unknown name.
        DataError: the folder doesn't exist.
    """
    layout = read_layout(folder, name)
    parts, errors, warnings = layout.parts, layout.problems, layout.notes
    if name is not None and DATASETS[name].layout == "vtab":  # its common list names other files
        both = read_layout(folder, name, retrain=True)
        parts = parts | {"train and val": both.parts["train"]}
        errors += [line for line in both.problems if line not in errors]
    seen = _see(parts.values())
    files = _check(seen)
    errors += files.errors
    errors += class_problems(layout.parts, layout.classes) if {"train", "all"} & set(parts) else []
    (errors if name is None else warnings).extend(f"{line}; {remedy}" for _, line, remedy in _repeats(parts))
    return VerifyReport(tuple(errors), (*warnings, *_near(layout.parts, seen), *files.warnings))


def check_classes(
    folder: Path, parts: NamedParts, problems: Sequence[str], *, published: Collection[str] = ()
) -> list[str]:
    """Checks what a run is about to use, once; returns notes on odd images, and on those that are in two parts.

    Every image of train and val is decoded, and every one of test, unless they are very many (`DECODED`): a
    damaged image of these is an error when it is used.

    Args:
        folder: the data folder, for messages.
        problems: what is already known to be wrong with the layout.
        published: parts of a published split. Images that two of them, or two classes, share are only noted; what a
            user puts in the place of a part must not be in another one.

    Raises:
        DataError: lists every problem with its file and reason.
    """
    seen = _see(images for part, images in parts.items() if len(images) <= DECODED[part])
    files = _check(seen)
    found = [*problems, *files.errors]
    noted: list[str] = []
    refused: list[str] = []
    for shared, line, remedy in _repeats(parts):
        if shared <= set(published):
            noted.append(line)
        else:
            refused.append(line if published else f"{line}; {remedy}")
    if published and refused:  # these may be a whole list
        advice = "change data.train, .val or .test"
        found.append(f"{len(refused)} image(s) are in two parts, such as {refused[0]}; {advice}")
    else:
        found += refused
    if found:
        raise DataError(list_problems(f"{folder} can't be used", found))
    twice = f"{len(noted)} image(s) of this published split are in two of its parts or classes, such as "
    return [*(twice + line for line in noted[:1]), *_near(parts, seen), *files.summary()]


def class_problems(parts: NamedParts, classes: Collection[str] | None) -> list[str]:
    """Lists what is wrong with the classes: only one to learn, or some that are not in training.

    Args:
        classes: their names; None takes those of the training images.
    """
    trained = {name for _, name in parts.get("train", parts.get("all", ()))}
    known = set(classes or trained)
    problems = []
    if len(trained) == 1:
        problems.append(f"one class only ({min(trained)}): there is nothing to tell apart")
    for part, images in parts.items():
        examples = {name: path for path, name in reversed(images) if name not in known}  # the first of each class
        problems += [
            f"{part}: class {name!r} of {path} is not among the {len(known)} classes of train"
            for name, path in sorted(examples.items())
        ]
    return problems


def _repeats(parts: NamedParts) -> list[tuple[set[str], str, str]]:
    """Returns the parts of each image file whose content is in two parts or in two classes, a line on it, a remedy."""
    images = [(part, *image) for part in (*PARTS, "all") for image in parts.get(part, ())]
    if len(images) > COMPARED:
        keys = [os.path.abspath(path) for _, path, _ in images]
    else:
        images = _of_equal_size(images)
        keys = file_hashes([path for _, path, _ in images])
    found = {}
    for label, (part, path), kind, (other, twin) in repeated([(name, (p, path)) for p, path, name in images], keys):
        line = same_image(f"class {label}", path, f"class {kind}", twin)
        found[path] = ({part, other}, line, "keep it in the right class")
    for part, path, other, twin in repeated([(part, path) for part, path, _ in images], keys):
        found[path] = ({part, other}, same_image(part, path, other, twin), "take it out of one part")
    return list(found.values())


def _of_equal_size(images: list[tuple[str, Path, str]]) -> list[tuple[str, Path, str]]:
    """Returns the files whose size is in two parts or classes: equal files have equal sizes, so no other is opened."""
    sizes = [_size(path) for _, path, _ in images]
    places = {(size, part, label) for size, (part, _, label) in zip(sizes, images, strict=True)}
    counts = Counter(size for size, _, _ in places)
    return [image for image, size in zip(images, sizes, strict=True) if size > 0 and counts[size] > 1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a dangling link: decoding says so
        return -1


def _see(parts: Iterable[Sequence[Named]]) -> Seen:
    """Returns what each picture shows; those that are new or changed are decoded."""
    paths = sorted({path for images in parts for path, _ in images})
    return dict(zip(paths, rgb_facts(paths), strict=True))


def _check(seen: Seen) -> VerifyReport:
    """Tells the pictures that can't be decoded, are too small or too long, and those that are odd."""
    errors: list[str] = []
    warnings: list[str] = []
    for path, facts in seen.items():
        try:
            if isinstance(facts, DataError):
                raise facts
            check_shape(facts.width, facts.height, path)
            if problem := too_small(facts.width, facts.height):
                raise DataError(f"{path}: {problem}")
        except DataError as error:
            errors.append(str(error))
        else:
            warnings += [f"{path}: {oddity}" for oddity in facts.oddities]
    return VerifyReport(tuple(errors), tuple(warnings))


def _near(parts: NamedParts, seen: Seen) -> list[str]:
    """Returns a note on near-duplicates in two parts, as far as their pictures were decoded.

    Where many pictures of different classes are near each other (digits on black, say), the measure tells nothing.
    """
    images = [(part, *image) for part in PARTS for image in parts.get(part, ())]
    known = [(*image, found) for image in images if isinstance(found := seen.get(image[1]), ImageFacts)]
    if not 0 < len(known) <= NEAR:
        return []
    facts = [found for *_, found in known]
    count, _ = near_across([part for part, *_ in known], facts, most=0)
    confused, _ = near_across([label for _, _, label, _ in known], facts, most=0) if count else (0, [])
    return near_note([(part, path) for part, path, *_ in known], facts) if 4 * confused <= count else []
