"""How do annotations become a folder of images and masks for good? Drawn as a task would, and written whole or not."""

from __future__ import annotations

import logging
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image

from samtune.base.disk import write_bytes, write_text
from samtune.data.facts import image_facts
from samtune.data.formats.annotations import Annotations, shown_problems
from samtune.data.formats.drawing import GROUND, Drawing
from samtune.data.formats.index_pictures import index_png
from samtune.data.formats.table import FORMATS, categories_of, left_out, read_place
from samtune.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
MOST = 254  # classes of a map of 8 bits, beside the background and what does not count


def import_annotations(
    name: str, source: Path, target: Path, *, classes: bool = False, categories: tuple[str, ...] | None = None
) -> int:
    """Writes `images/` and `masks/`, in parts where the source has any; returns the number of images.

    Args:
        name: of the format.
        source: a folder, or one file of annotations, with the pictures beside or below.
        classes: maps of class numbers with `labels.txt`, from 0 for the background; else masks of all objects.
        categories: those that count; None for all.

    Raises:
        ConfigError: maps of index pictures, which are maps.
        DataError: annotations that can't be used; all are listed, and nothing is left.
    """
    if classes and name == "index":
        raise ConfigError("--classes is not for index pictures, which are maps of classes: train on them as they are.")
    places = (FORMATS[name].parts(source) if source.is_dir() else {}) or {"": source}
    found = {part: read_place(name, place) for part, place in places.items()}
    drawing = _drawing(categories_of(name, source), source, classes=classes, categories=categories)
    problems = [line for said in found.values() for line in (*said.problems, *_misfits(said))]
    if problems or not any(said.images for said in found.values()):
        raise DataError(shown_problems(source, problems))
    partial = {part: target / f"{part or 'all'}.part" for part in found}  # get their names when complete
    for part, said in found.items():
        shutil.rmtree(partial[part], ignore_errors=True)
        _write_part(said, drawing, partial[part], classes=classes)
    for part, folder in partial.items():
        _put(folder, target, part)
    if classes:
        numbered = {0: GROUND, **{number: category for category, number in drawing.values.items()}}
        write_text(target / "labels.txt", "".join(f"{number} {category}\n" for number, category in numbered.items()))
    for note in dict.fromkeys(note for said in found.values() for note in said.notes):
        logger.warning("%s", note)
    return sum(len(said.images) for said in found.values())


def _drawing(names: list[str], source: Path, *, classes: bool, categories: tuple[str, ...] | None) -> Drawing:
    """Returns what is drawn: of classes their numbers from 1, else 255."""
    skipped = left_out(categories, names, source, key="--category") | {GROUND}
    kept = [name for name in names if name not in skipped]
    if classes and len(kept) > MOST:
        raise DataError(f"{source}: {len(kept)} categories, but a map holds {MOST}; choose some by --category")
    return Drawing({name: number if classes else 255 for number, name in enumerate(kept, start=1)}, 0, skipped)


def _misfits(annotations: Annotations) -> list[str]:
    """Returns a line for each picture that can't be read, or whose annotations are of another size."""
    images, lines = list(annotations.images.values()), []
    for image, facts in zip(images, image_facts([image.picture for image in images]), strict=True):
        if isinstance(facts, DataError):
            lines.append(str(facts))
        elif (facts.width, facts.height) != (image.width, image.height):
            sizes = f"annotated as {image.width} x {image.height} pixels, but it has {facts.width} x {facts.height}"
            turned = ", turned by its EXIF orientation; save it upright" * (facts.orientation > 4)
            lines.append(f"{image.source}: {image.picture.name}: {sizes}{turned}; annotate the picture as it is")
    return lines


def _write_part(annotations: Annotations, drawing: Drawing, folder: Path, *, classes: bool) -> None:
    """Writes `images/` and `masks/` of a part."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for stem, image in annotations.images.items():
        shutil.copyfile(image.picture, folder / "images" / f"{stem}{image.picture.suffix}")
        values, file = drawing.draw(image), BytesIO()
        Image.fromarray(values).save(file, format="PNG")
        coloured = index_png(values, [0, *drawing.values.values()]) if classes else file.getvalue()
        write_bytes(folder / "masks" / f"{stem}.png", coloured)


def _put(partial: Path, target: Path, part: str) -> None:
    """Gives what is complete its name."""
    if part:
        partial.rename(target / part)
        return
    for kind in ("images", "masks"):
        (partial / kind).rename(target / kind)
    partial.rmdir()
