"""How do annotations become the masks or maps that a task reads? Drawn once, and kept in the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from samtune.base.disk import cache_folder, write_bytes
from samtune.data.formats.annotations import Annotated, Annotations
from samtune.data.formats.table import read_place
from samtune.data.pairs import Pair
from samtune.errors import DataError

logger = logging.getLogger(__name__)
_IMAGES: dict[Path, Path] = {}  # of what was drawn to the picture it is of: a path in the cache tells a user nothing

_RULES = 2
"""Counts the rules by which annotations are read and drawn: what was drawn by others is drawn again."""
GROUND = "background"
"""The class of pixels that no mask or object covers."""


class Draws(Protocol):
    """How the objects of a picture become one map; its text tells it from all others."""

    def draw(self, image: Annotated) -> np.ndarray:
        """Returns (H, W) uint8 or uint16; a `DataError` has a line for each object that can't be drawn."""

    def notes(self, found: Annotations) -> Iterable[str]:
        """Returns a line for each rule by which a place is read."""


@dataclass(frozen=True)
class Drawing:
    """Which value each class gets in the pictures that are drawn.

    Attributes:
        values: of names; a class that is neither here nor left out is an error.
        ground: of pixels that belong to none.
        left_out: classes that are not drawn.
    """

    values: Mapping[str, int]
    ground: int
    left_out: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Says all of it in one order, which a set does not have from one process to the next."""
        return f"{dict(self.values)} {self.ground} {sorted(self.left_out)}"

    def value(self, name: str) -> int | None:
        """Returns the value of a class, None for one that is left out; a `DataError` for one that is not known."""
        if name in self.left_out:
            return None
        if name not in self.values:
            raise DataError(f"class {name!r} is not in data.classes ({', '.join(self.values)}); add it there")
        return self.values[name]

    def draw(self, image: Annotated) -> np.ndarray:
        """Draws the objects of a picture, later ones over earlier ones: (H, W) uint8."""
        drawn = np.full((image.height, image.width), self.ground, dtype=np.uint8)
        for item in image.objects:
            if (value := self.value(item.category)) is not None:
                drawn[image.mask(item)] = value
        return drawn

    def notes(self, found: Annotations) -> Iterable[str]:
        """Returns nothing beyond what the reader notes."""
        return found.notes


def scan_drawn(name: str, drawing: Draws, place: Path) -> tuple[list[Pair], list[str]]:
    """Returns the pictures of a place of annotations with what is drawn of them, and a line per problem."""
    try:
        found = read_place(name, place)
    except DataError as error:
        return [], [str(error)]
    pairs, problems = [], dict.fromkeys(found.problems)
    for note in drawing.notes(found):
        _say(note)
    how = f"{drawing} {found.categories}"
    for stem, image in sorted(found.images.items()):
        sources = [image.picture, *([image.source] if image.source.is_file() else [])]
        try:
            mask = drawn_file(image.picture, sources, how, partial(drawing.draw, image))
        except DataError as error:
            for text in str(error).splitlines():
                problems[text if str(image.source) in text else f"{image.source}: {image.picture.name}: {text}"] = None
            continue
        pairs.append(Pair(stem, image.picture, mask))
    if not pairs and not problems:
        problems[f"{place}: names no picture"] = None
    return pairs, list(problems)


@cache
def _say(note: str) -> None:
    """Says a note once: a folder is read more than once."""
    logger.warning("%s", note)


def drawn_file(image: Path, sources: Iterable[Path], how: str, draw: Callable[[], np.ndarray]) -> Path:
    """Returns the file of what is drawn for an image: another one when a source changes, or how it is drawn.

    Args:
        sources: the files that it is drawn from.
        draw: returns its (H, W) uint8 or uint16 values, asked for where it is not there yet.
    """
    key = "|".join([f"{_RULES} {how}", *_stamps(sources)])
    marks = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    target = cache_folder() / "drawn-maps" / marks[:32] / f"{image.stem}.png"
    _IMAGES[target] = image
    if not target.is_file():
        file = BytesIO()
        Image.fromarray(draw()).save(file, format="PNG")
        write_bytes(target, file.getvalue())
    return target


def told(mask: Path) -> str:
    """Returns what messages call the file of a mask: the picture whose annotations it is drawn of, or itself."""
    image = _IMAGES.get(mask)
    return str(mask) if image is None else f"the mask drawn for {image}"


def _stamps(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        facts = path.stat()
        yield f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
