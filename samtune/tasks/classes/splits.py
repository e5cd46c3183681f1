"""Which image belongs to which class, and to train, val or test.

A published split (folders or lists) stays as it is. What is missing is cut from train, seeded and by class, with
near-duplicates kept together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from samtune.data.splits import NONE_GIVEN, PARTS, Given, Reader, put_given
from samtune.data.verify import list_problems
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.tasks.classes.images import ClassSplits, LabelledImage, cut_parts, few_shots, label_images, some_names
from samtune.tasks.classes.layouts.folders import VAL_IS_TEST, Named, scan_classes, sort_classes
from samtune.tasks.classes.layouts.known import DATASETS, Layout, find_dataset, read_layout
from samtune.tasks.classes.layouts.lists import read_list
from samtune.tasks.classes.verify import check_classes, class_problems

_log = logging.getLogger(__name__)


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
    """Lists, checks and splits the images of a data folder.

    Classes are ordered by name, numbers as numbers; those of VTAB-1k are 0 to N - 1.

    Args:
        folder: holds `train/`, `val/`, `test/` with a folder per class, or a folder per class; or a data set that
            `name` says.
        name: a key of `DATASETS`.
        seed: of the cuts. A run leaves it alone, so that runs of several seeds report on the same images.
        given: parts elsewhere: a folder of class folders, or a text file of lines "path class" (relative to the data
            folder). Such a part must not share an image with another one, by path or content, except that train of
            the folder is without the images of given val and test.
        retrain: train on train and val together, val is empty; VTAB-1k's common list.
        shots: draw so many training images of each class; None takes all.
        shots_seed: of that draw.

    Returns:
        The parts, each sorted by name.

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
    if retrain and missing == ["val"]:  # it would only come back
        missing = []
    if missing:
        labelled |= cut_parts(labelled["train"], missing, classes=classes, seed=seed, notes=notes)
    if retrain:
        labelled = _together(labelled, notes)
    notes += _untrained(labelled, classes)
    if shots is not None:
        labelled["train"] = few_shots(labelled["train"], shots, classes=classes, seed=shots_seed)
        notes.append(f"{shots} training image(s) per class, drawn with seed {shots_seed}")
    return ClassSplits(labelled["train"], labelled["val"], labelled["test"], notes, classes=classes)


def evaluation_images(
    folder: str | Path, classes: Sequence[str], *, name: str | None = None, split: str = "test"
) -> list[LabelledImage]:
    """Lists the images that a trained model is to be evaluated on, with the labels of that model.

    Args:
        folder: class folders, all of which are taken; or `train/`, `val/`, `test/` with class folders (where
            `test/` is missing, `val/` is the test part); or a data set that `name` says.
        classes: names of the model's classes; the folder may have fewer.
        name: a key of `DATASETS`.
        split: the part to take.

    Returns:
        The images, sorted by name.

    Raises:
        ConfigError: unknown name or split.
        DataError: the part is not there, the model doesn't know a class, or an image can't be used.
    """
    if split not in PARTS:
        raise ConfigError(unknown_name("split", split, PARTS))
    layout = read_layout(folder, name, wanted=(split, "all"))
    problems, parts = layout.problems, layout.parts
    images = parts.get("all") or parts.get(split, [])
    if not images and not problems:
        found = read_layout(folder, name).parts
        raise DataError(f"{layout.root}: no {split} images (parts found: {', '.join(found) or 'none'}); add {split}/, "
                        "or choose a part that is there with --split")  # fmt: skip
    _refuse_unknown(layout, images, classes)
    check_classes(layout.root, {"test": images}, problems)
    for note in layout.notes:
        _log.warning("%s", note)
    return label_images(images, classes, layout.root)


def corruption_parts(
    folder: str | Path, classes: Sequence[str] | None = None
) -> dict[tuple[str, int], list[LabelledImage]]:
    """Lists the images of ImageNet-C; these are too many to be decoded beforehand.

    Args:
        folder: holds CORRUPTION/SEVERITY/WNID/*.JPEG, or a folder `imagenet-c` with these.
        classes: names of the model's classes; None takes the folders' names, sorted.

    Returns:
        (corruption, severity) to its images, sorted.

    Raises:
        DataError: another layout, or a class that the model doesn't know.
    """
    layout = read_layout(folder, "imagenet-c")
    if layout.problems:
        raise DataError(list_problems(f"{layout.root} can't be used", layout.problems))
    everything = [named for part in layout.parts.values() for named in part]
    known = sort_classes(label for _, label in everything) if classes is None else tuple(classes)
    _refuse_unknown(layout, everything, known)
    found = {}
    for part, images in layout.parts.items():
        corruption, severity = part.split("/")
        found[corruption, int(severity)] = label_images(images, known, layout.root)
    return found


def _settle_held(layout: Layout, given: Collection[str]) -> None:
    """Takes a `val/` that is the only folder to measure on as val or as test, whichever the user names it for."""
    parts, root = layout.parts, layout.root
    if not (root / "val").is_dir() or (root / "test").is_dir() or len({"val", "test"} & set(given)) != 1:
        return
    places = [{os.path.abspath(path) for path, _ in parts.get(part, ())} for part in ("val", "test")]
    if places[0] == places[1]:
        parts.pop("test" if "val" in given else "val", None)
        layout.notes[:] = [note for note in layout.notes if note != VAL_IS_TEST]


def _untrained(labelled: Mapping[str, Sequence[LabelledImage]], classes: Sequence[str]) -> list[str]:
    """Notes classes that val or test have, and train doesn't: possible where lists say what the classes are."""
    held = {item.label for part in ("val", "test") for item in labelled[part]}
    missing = sorted(held - {item.label for item in labelled["train"]})
    if not missing:
        return []
    names = some_names([classes[label] for label in missing])
    return [f"{len(missing)} class(es) of val and test without a training image, which can't be learned: {names}"]


def _together(labelled: dict[str, list[LabelledImage]], notes: list[str]) -> dict[str, list[LabelledImage]]:
    """Moves val into train."""
    train = sorted([*labelled["train"], *labelled.get("val", [])], key=lambda item: item.name)
    notes.append(f"train and val train together: {len(train)} images")
    return {"train": train, "val": [], "test": labelled["test"]}


def _refuse_unknown(layout: Layout, images: Sequence[Named], classes: Sequence[str]) -> None:
    unknown = sort_classes({label for _, label in images} - set(classes))
    if unknown:
        raise DataError(
            f"{layout.root}: {len(unknown)} class(es) unknown to the checkpoint: {some_names(unknown)}; "
            f"the checkpoint knows {len(classes)} classes: {some_names(classes)}"
        )
