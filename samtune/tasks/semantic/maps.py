"""What does the file of a map of classes show, and which class is each of its values?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samtune.data.cache import recall
from samtune.data.formats.index_pictures import VALUES, read_values, values_of
from samtune.data.pictures import ORIENTATION, open_picture
from samtune.errors import DataError
from samtune.types import IGNORE, ClassMap


class MapFacts(NamedTuple):
    """What a file of a map shows.

    Attributes:
        width: in pixels, EXIF orientation applied, as `height`.
        orientation: EXIF tag, 1 = upright.
        oddities: what a user may want to know, a line each.
        palette: whether its values are of a palette, not grey.
        pixels: (value, number of its pixels), of each value that is there.
    """

    width: int
    height: int
    orientation: int
    oddities: list[str]
    palette: bool
    pixels: list[tuple[int, int]]

    def values(self) -> set[int]:
        """Returns the values that are there."""
        return {value for value, _ in self.pixels}


@dataclass(frozen=True)
class ClassTable:
    """The classes of a job.

    Attributes:
        names: in the order of the model's outputs; the place of a name is the class's number in a `ClassMap`.
        values: of each class in the files.
        ignore: the value in the files of pixels that do not count.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int

    @classmethod
    def of(cls, names: Mapping[int, str], ignore: int) -> "ClassTable":
        """Makes the table of names by value."""
        return cls(tuple(names.values()), tuple(names), ignore)

    def places(self, path: Path) -> ClassMap:
        """Reads the map of a file; a `DataError` for one that can't be read, or has a value of no class."""
        values = read_values(path)
        if strange := sorted(set(np.unique(values).tolist()) - {*self.values, self.ignore}):
            raise DataError(self.strange(path, strange))
        return self._places[values]

    def to_values(self, places: ClassMap) -> ClassMap:
        """Returns the values that files have for a map of classes."""
        table = np.full(VALUES, self.ignore, dtype=np.uint8)
        table[: len(self.values)] = self.values
        return table[places]

    def strange(self, path: Path, values: Sequence[int]) -> str:
        """Words the error of a file with values of no class."""
        shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        known = f"{_ranges(self.values)}, data.ignore_index is {self.ignore}"
        word = "value" if len(values) == 1 else "values"
        return f"{path}: {word} {shown} of no class (data.classes has {known}); name the class, or mend the file"

    def text(self) -> str:
        """Returns the classes with their values, for people."""
        return ", ".join(f"{value} {name}" for value, name in zip(self.values, self.names, strict=True))

    @cached_property
    def _places(self) -> ClassMap:
        table = np.full(VALUES, IGNORE, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[self.ignore] = IGNORE
        return table  # type: ignore[return-value]


def map_facts(paths: Sequence[Path]) -> list[MapFacts | DataError]:
    """Returns the facts of the files of maps, remembered per file; where one can't be read, the error that says why."""
    found: list[MapFacts | DataError] = []
    for answer in recall("class-maps-1", paths, _look):
        if not isinstance(answer, DataError):
            facts = MapFacts(*answer)
            answer = facts._replace(pixels=[(value, count) for value, count in facts.pixels])
        found.append(answer)
    return found


def _look(path: Path) -> MapFacts:
    with open_picture(path) as picture:
        values, palette = values_of(picture), picture.mode == "P"
        orientation = int(picture.getexif().get(ORIENTATION, 1))
    counts = np.bincount(values.ravel(), minlength=VALUES)
    pixels = [(int(value), int(counts[value])) for value in np.flatnonzero(counts)]
    return MapFacts(values.shape[1], values.shape[0], orientation, [], palette, pixels)


def _ranges(values: Sequence[int]) -> str:
    """Words rising numbers, such as "0 to 10" or "0, 2, 5"."""
    if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
