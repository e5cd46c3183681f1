"""Which formats of annotations are there, what does a data folder have, and where are its parts?

One more is a module beside this one, and a line of `FORMATS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from samtune.data.formats.annotations import Annotations
from samtune.data.formats.coco import coco_files, coco_parts, read_coco, write_coco
from samtune.data.formats.cvat import cvat_files, read_cvat, write_cvat
from samtune.data.formats.index import index_files, labels_file, read_index, write_index
from samtune.data.formats.label_studio.tasks import label_studio_files, read_label_studio, write_label_studio
from samtune.data.formats.labelme import labelme_files, read_labelme, write_labelme
from samtune.data.formats.voc import read_voc, voc_files
from samtune.data.formats.yolo import read_yolo, write_yolo, yolo_files, yolo_parts
from samtune.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

FormatName = Literal["auto", "pairs", "coco", "yolo", "labelme", "label-studio", "cvat", "index", "voc"]
"""What `data.format` may be: `pairs` has masks already."""
PART_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Of a part to the names that its folder may have."""


def _no_parts(folder: Path) -> dict[str, Path]:
    return {}


class Source(NamedTuple):
    """How a data folder is read: in which format, and with which of its categories; None for all."""

    format: FormatName = "auto"
    categories: tuple[str, ...] | None = None

    def resolved(self, folder: Path) -> str:
        """Returns the format, for "auto" the one that is found, which is said; a `ConfigError` where several fit."""
        if self.format != "auto":
            return self.format
        found = find_format(folder)
        if found != "pairs":
            logger.info("%s is read as %s, which it has (data.format)", folder, found)
        return found

    def found_in(self, folder: Path) -> Source:
        """Returns how a model that was tuned with this reads a folder to measure; "auto" where it has not this."""
        own = FORMATS.get(self.format)
        return self if own is not None and folder.is_dir() and _has(own, folder) else self._replace(format="auto")

    def without_categories(self, folder: Path) -> None:
        """Raises a `ConfigError` for categories chosen of masks whose values have no names."""
        if self.categories is not None:
            text = f"data.categories is {', '.join(self.categories)}, but the masks of {folder} name no categories"
            raise ConfigError(f"{text}. Leave it empty, or see data.format.")


ANY = Source()


class Format(NamedTuple):
    """How a format is read and written.

    Attributes:
        read: returns what a place says, with all that is wrong; a `DataError` where nothing can be read.
        write: writes it into a folder, without the pictures, and returns what was written; None where it is only read.
        files: returns the files of annotations of a place, none where it has another format.
        own_parts: returns the places of parts that are not folders of their own.
        separate: it tells the objects of a category apart.
    """

    read: Callable[[Path], Annotations]
    write: Callable[[Annotations, Path], Path] | None
    files: Callable[[Path], list[Path]]
    own_parts: Callable[[Path], dict[str, Path]] = _no_parts
    separate: bool = True

    def parts(self, folder: Path) -> dict[str, Path]:
        """Returns the place of each part that a data folder has; none where it is one part."""
        found = {part: path for part, path in part_folders(folder) if self.files(path)}
        return found or self.own_parts(folder)

    def places(self, folder: Path) -> list[Path]:
        """Returns the places of a data folder: its parts, or itself."""
        return list(self.parts(folder).values()) or [folder]


FORMATS = {
    "coco": Format(read_coco, write_coco, coco_files, coco_parts),
    "yolo": Format(read_yolo, write_yolo, yolo_files, yolo_parts),
    "labelme": Format(read_labelme, write_labelme, labelme_files),
    "label-studio": Format(read_label_studio, write_label_studio, label_studio_files),
    "cvat": Format(read_cvat, write_cvat, cvat_files),
    "index": Format(read_index, write_index, index_files, separate=False),
    "voc": Format(read_voc, None, voc_files),
}
WRITERS = {name: form.write for name, form in FORMATS.items() if form.write is not None}
"""Of formats that are also written, how."""
SEPARATE = tuple(name for name, form in FORMATS.items() if form.separate)
"""Formats that tell the objects of a category apart."""


def part_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the parts that are sub-folders of a data folder."""
    for part, names in PART_NAMES.items():
        found = [folder / name for name in names if (folder / name).is_dir()]
        if found:
            yield part, found[0]


def find_format(folder: Path) -> str:
    """Returns the format that a data folder has; "pairs" where it has masks, and where it has none that is known.

    Raises:
        ConfigError: several fit.
    """
    if not folder.is_dir() or any((place / "masks").is_dir() for place in _places(folder)):
        return "pairs"
    found = [name for name, form in FORMATS.items() if name != "index" and _has(form, folder)]
    if len(found) > 1:
        remedy = f"Choose one by data.format={found[0]}, or take the other out."
        raise ConfigError(f"{folder} has annotations as of {' and '.join(found)}. {remedy}")
    return found[0] if found else "pairs"


def names_classes(folder: Path) -> bool:
    """Tells whether a folder of masks has a list of their classes."""
    return folder.is_dir() and any(labels_file(place) is not None for place in _places(folder))


def read_place(name: str, place: Path) -> Annotations:
    """Reads a place in a format, remembered until one of its files changes; raises as its `read`."""
    form = FORMATS[name]
    folders = [place, *(path for path in place.iterdir() if path.is_dir())] if place.is_dir() else [place.parent]
    return _read(name, place, tuple(map(_stamp, [*form.files(place), *folders])))


def categories_of(name: str, folder: Path) -> list[str]:
    """Returns the categories of all parts of a data folder, in the format's order; raises as its `read`."""
    found: dict[str, None] = {}
    for place in FORMATS[name].places(folder):
        found |= dict.fromkeys(dict(sorted(read_place(name, place).categories.items())).values())
    return list(found)


def left_out(
    chosen: tuple[str, ...] | None, known: list[str], folder: Path, *, key: str = "data.categories"
) -> frozenset[str]:
    """Returns the categories of a data folder not chosen by `key`; a `DataError` for chosen ones that it lacks."""
    if absent := [name for name in chosen or () if name not in known]:
        text = f"{key} has {', '.join(map(repr, absent))}, which {folder} doesn't have"
        raise DataError(f"{text}; it has: {', '.join(known) or 'none'}")
    return frozenset() if chosen is None else frozenset(known) - set(chosen)


def _places(folder: Path) -> list[Path]:
    return [folder, *(path for _, path in part_folders(folder))]


def _has(form: Format, folder: Path) -> bool:
    return any(form.files(place) for place in _places(folder)) or bool(form.own_parts(folder))


@lru_cache(maxsize=16)
def _read(name: str, place: Path, stamps: tuple[str, ...]) -> Annotations:
    return FORMATS[name].read(place)


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
