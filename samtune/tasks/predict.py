"""What the predictions of all tasks share: the request, the images it means, and the loop over them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from samtune import console
from samtune.base.paths import find_path
from samtune.data.pictures import SUFFIXES
from samtune.data.verify import list_problems
from samtune.errors import ConfigError, DataError
from samtune.types import ImageArray

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Prediction:
    """What `samtune predict` asks for.

    Attributes:
        paths: image files, or folders of images (not searched deeper).
        overlay: also draw the answers over the images.
        boxes_xyxy: prompts in pixels of the image, of which there is one then; empty for none.
        points_xy: likewise, all on the object.
        format: of the answers; None for the task's first.
        grid: clicks along a side by which segment-anything's own generator finds objects; None for the task's way.
    """

    checkpoint: Path
    paths: Sequence[Path]
    out: Path
    device: str = "auto"
    overlay: bool = False
    boxes_xyxy: Sequence[tuple[float, ...]] = ()
    points_xy: Sequence[tuple[float, ...]] = ()
    format: str | None = None
    grid: int | None = None


def refuse_format(request: Prediction) -> None:
    """Raises a `ConfigError` for a task whose answers have one format."""
    if request.format is not None:
        raise ConfigError(
            f"--format {request.format!r} is for maps of classes or objects (task: semantic, instances); "
            f"{request.checkpoint} answers in one."
        )
    refuse_grid(request)


def refuse_grid(request: Prediction) -> None:
    """Raises a `ConfigError` for a task whose answers are not objects."""
    if request.grid is not None:
        raise ConfigError(
            f"--point {request.grid}x{request.grid} finds objects (task: instances); {request.checkpoint} has none."
        )


def predict_each(
    images: Sequence[Path],
    predict: Callable[[Path], AnswerT],
    *,
    what: str,
    finish: Callable[[dict[Path, AnswerT]], None] = lambda answers: None,
) -> dict[Path, AnswerT]:
    """Answers every image, shows the progress, and returns the answers in the order of the images.

    Args:
        predict: reads and answers one image; a `DataError` of it is kept for the end, naming the image.
        what: a word for one answer, such as "mask".
        finish: called with the answers of the good images before the others are reported.

    Raises:
        DataError: images without an answer; all are listed.
    """
    answers, problems = {}, []
    with console.progress("predict", len(images)) as advance:
        for path in images:
            try:
                answers[path] = predict(path)
            except DataError as err:
                problems.append(str(err))
            advance()
    finish(answers)
    if problems:
        raise DataError(list_problems(f"no {what} for {len(problems)} of {len(images)} images", problems))
    return answers


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Lists the image files that `paths` mean: files as they are, folders by their pictures, sorted by name.

    Raises:
        DataError: a path that doesn't exist, or a folder without pictures; all are listed.
    """
    found: dict[Path, Path] = {}  # resolved -> as given: a file counts once
    problems = []
    for given in paths:
        path = find_path(given)
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
            if not files:
                hint = f"; did you mean {path / 'images'}?" if (path / "images").is_dir() else ""
                problems.append(f"{path}: no image in this folder ({' '.join(SUFFIXES)}){hint}")
        elif not path.exists():
            problems.append(f"{path}: no such file or folder")
        found |= {file.resolve(): file for file in files if file.resolve() not in found}
    if not paths:
        problems.append("no path was given; name image files, or folders of images")
    if problems:
        raise DataError(list_problems("nothing was predicted", problems))
    return list(found.values())


def checked_image(image: ImageArray) -> ImageArray:
    """Returns the image if it is an (H, W, 3) uint8 array; raises a `DataError` that says what it is instead."""
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise DataError(
            f"expected an image of shape (H, W, 3) and dtype uint8, got shape {shape} and dtype {dtype}. "
            "samtune.data.pictures.read_image reads one from a file."
        )
    return image


def check_one_image(images: Collection[Path]) -> None:
    """Raises a `ConfigError` where a prompt is given for more than one image."""
    if len(images) > 1:
        raise ConfigError(
            f"--box and --point are in pixels of one image, and {len(images)} were given. "
            "Predict each with its own, or leave the prompt out."
        )


def targets_of(images: Sequence[Path], out: Path, suffix: str = ".png") -> dict[Path, Path]:
    """Returns the file that each image's answer goes to, `out/STEM.png`, after making sure that no file would be lost.

    Raises:
        DataError: two images of one stem.
        ConfigError: an answer would replace an image.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(path.stem, []).append(path)
    if clashes := [f"{stem}{suffix}: {', '.join(map(str, p))}" for stem, p in by_stem.items() if len(p) > 1]:
        title = "several images would write one mask; rename them or predict them apart"
        raise DataError(list_problems(title, clashes))
    targets = {path: out / f"{path.stem}{suffix}" for path in images}
    if lost := {path.resolve() for path in images} & {target.resolve() for target in targets.values()}:
        raise ConfigError(
            f"--out {out} holds the images: {len(lost)} of them would be replaced. Choose another folder."
        )
    return targets
