"""Which image belongs to which class, and to train, val or test.

A published split (folders or lists) stays as it is. What is missing is cut from train, seeded and by class, with
near-duplicates kept together.
"""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samtune.data.facts import ImageFacts, group_near, hash_images
from samtune.data.splits import NONE_GIVEN, PARTS, Given, Reader, Splits, cut_groups, put_given
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.tasks.classes.layouts.folders import VAL_IS_TEST, Named, scan_classes, sort_classes
from samtune.tasks.classes.layouts.known import DATASETS, Layout, find_dataset, read_layout
from samtune.tasks.classes.layouts.lists import read_list
from samtune.tasks.classes.verify import check_classes, class_problems

_log = logging.getLogger(__name__)

RATIO = 0.1  # of the images of a class, for each part that is cut
GROUPED = 100_000  # among more images, near-duplicates are not looked for


@dataclass(frozen=True)
class LabelledImage:
    """An image file with the index of its class; `name` is relative to the data folder, with /, and unique."""

    image: Path
    label: int
    name: str


@dataclass(frozen=True)
class ClassSplits(Splits[LabelledImage]):
    """The disjoint parts; a label is an index into `classes`. Val is empty when train and val train together."""

    classes: tuple[str, ...] = field(kw_only=True)

    def digest(self) -> str:
        """Returns the SHA-256 of names and classes in each part, to tell whether two runs used the same split."""
        lines = (f"{p}/{i.name}\t{self.classes[i.label]}\n" for p in PARTS for i in getattr(self, p))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def resolve_classes(
    folder: str | Path,
    *,
    name: str | None = None,
    seed: int = 0,
    given: Given = NONE_GIVEN,
    retrain: bool = False,
    shots: int | None = None,
    shots_seed: int = 0,
) -> ClassSplits:
    """Lists, checks and splits the images of a data folder, each part sorted by name.

    Classes are ordered by name, numbers as numbers; those of VTAB-1k are 0 to N - 1.

    Args:
        folder: holds `train/`, `val/`, `test/` with a folder per class, or a folder per class; or a data set that
            `name`, a key of `DATASETS`, says.
        seed: of the cuts. A run leaves it alone, so that runs of several seeds report on the same images.
        given: parts elsewhere: a folder of class folders, or a text file of lines "path class" (relative to the data
            folder). Such a part must not share an image with another one, by path or content, except that train of
            the folder is without the images of given val and test.
        retrain: train on train and val together, val is empty; VTAB-1k's common list.
        shots: draw so many training images of each class by `shots_seed`; None takes all.

    Raises:
        ConfigError: unknown name.
        DataError: lists everything that is wrong with layout, lists, labels and images at once.
    """
    if name is not None and not find_dataset(name).trains:
        raise DataError(
            f"{DATASETS[name].title} is for evaluation only, nothing is trained on it; use samtune evaluate"
        )
    named = given.parts()
    wanted = [part for part in PARTS if part not in named] + (["all"] if "train" not in named else [])
    layout = read_layout(folder, name, wanted=wanted, retrain=retrain)
    parts, problems, notes = layout.parts, layout.problems, layout.notes
    if "all" in parts:
        parts["train"] = parts.pop("all")
    reader = Reader(
        folder=lambda path: scan_classes(path, problems, notes),
        file=lambda path: read_list(path, layout.root, problems),
        path_of=lambda image: image[0],
        wanted="a folder of classes nor a list",
    )
    problems += put_given(parts, given, layout.root, reader)
    _settle_held(layout, named)
    if not parts.get("train") and not problems:
        problems.append(f"no training image (parts found: {', '.join(parts) or 'none'}); add train/ or data.train")
    classes = layout.classes or sort_classes(label for _, label in parts.get("train", ()))
    problems += class_problems(parts, classes)
    published = [part for part in PARTS if name is not None and part not in named]
    notes += check_classes(layout.root, parts, problems, published=published)
    labelled = {part: label_images(named, classes, layout.root) for part, named in parts.items()}
    missing = [part for part in ("val", "test") if part not in parts]
    if missing and not (retrain and missing == ["val"]):  # it would only come back
        labelled |= _cut_parts(labelled["train"], missing, classes=classes, seed=seed, notes=notes)
    if retrain:
        train = sorted([*labelled["train"], *labelled.get("val", [])], key=lambda item: item.name)
        notes.append(f"train and val train together: {len(train)} images")
        labelled |= {"train": train, "val": []}
    notes += _untrained(labelled, classes)
    if shots is not None:
        labelled["train"] = _few_shots(labelled["train"], shots, classes=classes, seed=shots_seed)
        notes.append(f"{shots} training image(s) per class, drawn with seed {shots_seed}")
    return ClassSplits(labelled["train"], labelled["val"], labelled["test"], notes, classes=classes)


def evaluation_images(
    folder: str | Path, classes: Sequence[str], *, name: str | None = None, split: str = "test"
) -> list[LabelledImage]:
    """Lists the images that a trained model is to be evaluated on, sorted by name, with the labels of that model.

    Args:
        folder: class folders, all of which are taken; or `train/`, `val/`, `test/` with class folders (where
            `test/` is missing, `val/` is the test part); or a data set that `name`, a key of `DATASETS`, says.
        classes: names of the model's classes; the folder may have fewer.

    Raises:
        ConfigError: unknown name or split.
        DataError: the part is not there, the model doesn't know a class, or an image can't be used.
    """
    if split not in PARTS:
        raise ConfigError(unknown_name("split", split, PARTS))
    layout = read_layout(folder, name, wanted=(split, "all"))
    images = layout.parts.get("all") or layout.parts.get(split, [])
    if not images and not layout.problems:
        found = ", ".join(read_layout(folder, name).parts) or "none"
        choices = f"add {split}/, or choose a part that is there with --split"
        raise DataError(f"{layout.root}: no {split} images (parts found: {found}); {choices}")
    refuse_unknown(layout, images, classes)
    check_classes(layout.root, {"test": images}, layout.problems)
    for note in layout.notes:
        _log.warning("%s", note)
    return label_images(images, classes, layout.root)


def label_images(images: Sequence[Named], classes: Sequence[str], root: Path) -> list[LabelledImage]:
    """Labels images, whose classes are all in `classes`; returns them sorted by their names, relative to `root`."""
    index = {name: label for label, name in enumerate(classes)}
    items = [LabelledImage(path, index[name], _relative(path, root)) for path, name in images]
    return sorted(items, key=lambda item: item.name)


def refuse_unknown(layout: Layout, images: Sequence[Named], classes: Sequence[str]) -> None:
    """Refuses images (with the names of their classes) of classes that a trained model does not have."""
    if unknown := sort_classes({label for _, label in images} - set(classes)):
        raise DataError(
            f"{layout.root}: {len(unknown)} class(es) unknown to the checkpoint: {_some(unknown)}; "
            f"the checkpoint knows {len(classes)} classes: {_some(classes)}"
        )


def _settle_held(layout: Layout, given: Collection[str]) -> None:
    """Takes a `val/` that is the only folder to measure on as val or as test, whichever the user names it for."""
    parts, root = layout.parts, layout.root
    if not (root / "val").is_dir() or (root / "test").is_dir() or len({"val", "test"} & set(given)) != 1:
        return
    places = [{os.path.abspath(path) for path, _ in parts.get(part, ())} for part in ("val", "test")]
    if places[0] == places[1]:
        parts.pop("test" if "val" in given else "val", None)
        layout.notes[:] = [note for note in layout.notes if note != VAL_IS_TEST]


def _cut_parts(
    train: Sequence[LabelledImage], missing: Sequence[str], *, classes: Sequence[str], seed: int, notes: list[str]
) -> dict[str, list[LabelledImage]]:
    """Cuts parts from sorted train: a tenth of every class each, near-duplicates of a class kept together.

    A class whose images are nearly all alike (digits on black, say) has only identical ones kept together; one that
    is too small to be cut stays in train. Both are noted.
    """
    images = hash_images([item.image for item in train]) if len(train) <= GROUPED else []
    chosen: dict[str, list[int]] = {"train": [], **{part: [] for part in missing}}
    alike, small = [], []
    for label, indices in _members(train).items():
        groups, grouped = _groups(indices, images, len(missing) + 1)
        if not grouped:
            alike.append(classes[label])
        if len(groups) <= len(missing):
            small.append(classes[label])
            chosen["train"] += indices
            continue
        counts = dict.fromkeys(missing, max(1, round(RATIO * len(indices))))
        for part, taken in cut_groups(groups, counts, (seed, label)).items():
            chosen[part] += taken
    names = " and ".join(missing)
    if not all(chosen.values()):
        raise DataError(f"{len(train)} images are too few to cut {names} from train; add images, or give the parts")
    kept = "near-duplicates kept together" if images else f"more than {GROUPED:,} images are not compared"
    sizes = ", ".join(f"{len(chosen[part])} {part}" for part in chosen)
    notes.append(f"{names} cut from train with seed {seed}, by class, {kept}: {sizes}")
    if alike:
        notes.append(f"only identical images kept together where all of a class are alike: {_count(alike)}")
    if small:
        notes.append(f"too few images to cut, all stay in train: {_count(small)}")
    return {part: [train[i] for i in sorted(indices)] for part, indices in chosen.items()}


def _groups(indices: list[int], images: list[ImageFacts], needed: int) -> tuple[list[list[int]], bool]:
    """Groups the near-duplicates of a class; if these are fewer than needed, the identical images, and False."""
    if not images:
        return [[index] for index in indices], True
    near = [[indices[i] for i in group] for group in group_near([images[index] for index in indices])]
    if len(near) >= needed:
        return near, True
    identical: dict[str, list[int]] = {}
    for index in indices:
        identical.setdefault(images[index].content, []).append(index)
    return list(identical.values()), False


def _few_shots(train: Sequence[LabelledImage], shots: int, *, classes: Sequence[str], seed: int) -> list[LabelledImage]:
    """Draws the same number of sorted images of every class; refuses classes with fewer."""
    if shots < 1:
        raise DataError(f"data.shots is {shots}; at least 1 image per class is needed")
    members: dict[int, list[int]] = {label: [] for label in range(len(classes))} | _members(train)
    few = [f"{classes[label]} ({len(indices)})" for label, indices in members.items() if len(indices) < shots]
    if few:
        raise DataError(f"data.shots is {shots}, but these classes have fewer training images: {_count(few)}")
    drawn = []
    for label, indices in members.items():
        drawn += np.random.default_rng((seed, label)).choice(indices, shots, replace=False).tolist()
    return [train[index] for index in sorted(drawn)]


def _members(images: Sequence[LabelledImage]) -> dict[int, list[int]]:
    """Returns the indices of the images of each class, by rising label."""
    members: dict[int, list[int]] = {}
    for index, item in enumerate(images):
        members.setdefault(item.label, []).append(index)
    return dict(sorted(members.items()))


def _untrained(labelled: Mapping[str, Sequence[LabelledImage]], classes: Sequence[str]) -> list[str]:
    """Notes classes that val or test have, and train doesn't: possible where lists say what the classes are."""
    held = {item.label for part in ("val", "test") for item in labelled[part]}
    missing = [classes[label] for label in sorted(held - {item.label for item in labelled["train"]})]
    what = f"{len(missing)} class(es) of val and test without a training image, which can't be learned"
    return [f"{what}: {_some(missing)}"] if missing else []


def _relative(path: Path, root: Path) -> str:
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return Path(os.path.relpath(path, root)).as_posix()  # a list or an option names a file outside of the data folder


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} class(es): {_some(names)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
