"""What the predictions of all tasks share: the request, the images it means, and the loop over them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tifffile import TiffWriter

from samtune import console
from samtune.base.disk import replacing
from samtune.base.paths import find_path
from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_stack
from samtune.data.formats.annotations import Annotated, Annotations
from samtune.data.formats.table import WRITERS
from samtune.data.pictures import SUFFIXES
from samtune.data.verify import list_problems
from samtune.errors import ConfigError, DataError, unknown_name
from samtune.types import PixelArray

AnswerT = TypeVar("AnswerT")
_TARGETS = {"yolo": ("labels", ".txt"), "index": ("masks", ".png")}
"""Of a format to the folder and ending of a file for each image; others have `.json`, or one file for all."""

STACK = "stack"
"""The format of answers to slices: a TIFF with a page for each."""


@dataclass(frozen=True)
class Prediction:
    """What `samtune predict` asks for.

    Attributes:
        paths: image files, or folders of images (not searched deeper).
        overlay: also draw the answers over the images.
        boxes_xyxy: prompts in pixels of the image, of which there is one then; empty for none.
        points_xy: likewise, all on the object.
        format: of the answers; None for the task's first, "stack" for the pages of files that are slices.
        grid: clicks along a side by which segment-anything's own generator finds objects; None for the task's way.
        tiles: side and overlap in pixels of the images, for a file that has none of its own.
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
    tiles: tuple[int, int] | None = None

    @property
    def stack(self) -> bool:
        """Whether the pages of each file are slices, each with an answer of its own."""
        return self.format == STACK


def check_stack(request: Prediction) -> None:
    """Raises a `ConfigError` for a prompt or an overlay beside a stack of slices."""
    points = request.points_xy or request.grid
    other: dict[str, object] = {"--overlay": request.overlay, "--box": request.boxes_xyxy, "--point": points}
    if request.stack and (wrong := [name for name, value in other.items() if value]):
        raise ConfigError(f"--format stack answers each page of a TIFF by a page; leave {' and '.join(wrong)} out.")


def refuse_format(request: Prediction) -> None:
    """Raises a `ConfigError` for a task whose answers have one format, and are of whole images."""
    if request.tiles is not None:
        raise ConfigError(
            f"--tiles is for masks, maps of classes and objects; {request.checkpoint} takes whole images."
        )
    if request.format is not None:
        what = "masks, maps of classes and objects"
        raise ConfigError(f"--format {request.format!r} is for {what}; {request.checkpoint} answers in one.")
    refuse_grid(request)


def refuse_grid(request: Prediction) -> None:
    """Raises a `ConfigError` for a task whose answers are not objects."""
    if request.grid is not None:
        raise ConfigError(
            f"--point {request.grid}x{request.grid} finds objects (task: instances); {request.checkpoint} has none."
        )


def checked_format(request: Prediction, own: Iterable[str], formats: Iterable[str] = WRITERS) -> str:
    """Returns the format of the answers, the first of the task's `own` if none was given.

    Args:
        formats: of annotations that hold the task's answers.

    Raises:
        ConfigError: one that is neither of these nor the task's own.
    """
    known = [*own, *formats]
    form = request.format or known[0]
    if form not in known:
        raise ConfigError(f"--format: {unknown_name('format', form, known)}")
    return form


def targets_of_format(images: Sequence[Path], out: Path, form: str) -> dict[Path, Path]:
    """Returns the file that stands for each image's annotations; raises as `targets_of`, also for those of people."""
    folder, suffix = _TARGETS.get(form, ("", ".json"))
    targets = targets_of(images, out / folder, suffix)
    beside = {image: image.with_suffix(".json") for image in images} if form == "labelme" else {}
    if form == "yolo":
        beside = {
            image: image.parents[1] / "labels" / f"{image.stem}.txt" for image in images if len(image.parents) > 1
        }
    lost = [path for image, path in beside.items() if path.exists() and path.resolve() == targets[image].resolve()]
    if lost:
        text = f"--out {out} holds annotations of the images: {len(lost)} would be replaced, such as {lost[0]}"
        raise ConfigError(f"{text}. Choose another folder.")
    return targets


def save_annotations(
    form: str, found: Mapping[Path, Annotated | None], categories: Mapping[int, str], out: Path
) -> Path:
    """Writes the answers in a format of annotations, and returns the file or folder that has them."""
    images = {path.stem: image for path, image in found.items() if image is not None}
    return WRITERS[form](Annotations(images, categories, name="predictions"), out)


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


def predict_stacks(
    targets: Mapping[Path, Path], answer: Callable[[PixelArray], np.ndarray], pixels: Pixels, *, what: str
) -> int:
    """Answers the pages of each TIFF one by one, writes the answers as the pages of another, and returns their number.

    Args:
        targets: of each TIFF the file that it is answered by.
        answer: returns an (H, W) uint8 or uint16 mask or map of an image.
        what: a word for a stack of answers, for messages.

    Raises:
        DataError: no TIFF, a damaged one, or a page that the model does not take; all are listed, nothing of them is
            written.
        DiskError: a target can't be written.
    """

    def one(path: Path) -> None:
        with replacing(targets[path]) as partial, TiffWriter(partial) as writer:
            for image in read_stack(path, pixels):
                page = answer(image)
                writer.write(page, photometric="minisblack", compression="zlib", contiguous=False, metadata=None)

    return len(predict_each(list(targets), one, what=what))


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


def checked_image(image: PixelArray, pixels: Pixels = RGB) -> PixelArray:
    """Returns the image if it is as `read_pixels` returns one; else raises a `DataError` that says what it is."""
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    kinds = ("uint8",) if pixels.range is None else ("uint8", "float32")
    if shape is None or len(shape) != 3 or shape[2] != pixels.channels or 0 in shape or str(dtype) not in kinds:
        reader = "pictures.read_image" if pixels.plain else "channels.read.read_pixels"
        raise DataError(
            f"expected an image of shape (H, W, {pixels.channels}) and dtype {' or '.join(kinds)}, got shape {shape} "
            f"and dtype {dtype}. samtune.data.{reader} reads one from a file."
        )
    if dtype == np.float32 and not np.isfinite(image).all():
        raise DataError("the image holds NaN or infinity; replace them")
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
