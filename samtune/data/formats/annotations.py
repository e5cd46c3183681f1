"""What all formats are read into, and written from: of each picture its objects, of each object category and region."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from samtune.data.formats.shapes import Region, draw
from samtune.data.pictures import LARGEST_PIXELS, is_picture
from samtune.data.verify import list_problems
from samtune.errors import DataError

if TYPE_CHECKING:
    from samtune.types import MaskArray


@dataclass(frozen=True)
class Annotation:
    """An object, or all objects of a category together.

    Attributes:
        category: its name.
        region: polygons that are united, or run lengths.
        label: what messages call it, such as "annotation 17".
        crowd: it stands for several objects that are not told apart.
        score: from 0 to 1, of a prediction; None where people drew it.
    """

    category: str
    region: Region
    label: str = "annotation"
    crowd: bool = False
    score: float | None = None


class Annotated(NamedTuple):
    """A picture with its objects, in the order in which they are drawn: later ones over earlier ones.

    Attributes:
        source: the file that the objects are from.
        width: in pixels, as the annotations have it, as `height`.
    """

    picture: Path
    source: Path
    width: int
    height: int
    objects: list[Annotation]

    def mask(self, annotation: Annotation) -> MaskArray:
        """Draws one of its objects: (H, W) bool."""
        return draw(annotation.region, self.height, self.width)


@dataclass(frozen=True)
class Annotations:
    """What a place says.

    Attributes:
        images: by the stem of the picture.
        categories: the format's numbers to names, in its order.
        problems: a line each, with file and object, for what can't be used.
        notes: a line each on what is used by a stated rule.
        name: what a file that holds all pictures is called when it is written, without its ending.
    """

    images: Mapping[str, Annotated]
    categories: Mapping[int, str]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    name: str = "annotations"


@dataclass
class Reading:
    """Collects what a reader finds below a folder, and all that is wrong with it.

    Attributes:
        root: pictures are looked for in it and in its sub-folders, and nowhere else.
    """

    root: Path
    images: dict[str, Annotated] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    boxes: int = 0

    def __post_init__(self) -> None:
        below = sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[0] != ".")
        self._places = [self.root, *below, *(path / "images" for path in below if (path / "images").is_dir())]

    def picture(self, source: Path, *names: str) -> Path | None:
        """Returns the first picture that is there of these names; None after noting that none is."""
        for name in names:
            for path in (Path(os.path.normpath(place / name)) for place in self._places):
                # by names alone: what a link in the folder leads to was put there on purpose
                if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.root)) and _is_file(path):
                    return path
        wanted = f"names {names[0]}, which is not in {self.root}"
        self.problems.append(f"{source}: {wanted}; put the picture there, or take its annotations out")
        return None

    def image(self, picture: Path, source: Path, width: int, height: int) -> Annotated:
        """Adds a picture; a second one of its stem is noted."""
        found = Annotated(picture, source, width, height, [])
        if picture.stem in self.images:
            other = self.images[picture.stem].picture
            text = f"{source}: names {_shown(picture, self.root)}, and another picture of this stem"
            self.problems.append(f"{text} ({_shown(other, self.root)}); rename one of them")
        elif width < 1 or height < 1 or width * height > LARGEST_PIXELS:
            found_size = f"{picture.name} of {width} x {height} pixels"
            self.problems.append(f"{source}: {found_size}, 1 to {LARGEST_PIXELS:,} are possible; export it again")
        else:
            self.images[picture.stem] = found
        return found

    def add(
        self,
        image: Annotated,
        label: str,
        category: str | None,
        region: Callable[[], Region],
        *,
        crowd: bool = False,
        score: float | None = None,
    ) -> None:
        """Adds an object to a picture, or the reason why its region is none to the problems.

        Args:
            category: None for one that is not among those that the format lists, which the caller has noted.
            region: makes it; what it raises is the reason.
        """
        try:
            made = region()
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            line = f"{image.source}: {image.picture.name}, {label}: {reason}"
            self.problems.append(f"{line}; mend it, or take it out")
            return
        if category is not None:
            image.objects.append(Annotation(category, made, label, crowd, score))

    def complain(self, source: Path, where: str, reason: str) -> None:
        """Notes that something in a file can't be used."""
        self.problems.append(f"{source}: {where}: {reason}")

    def done(self, categories: Mapping[int, str], source: Path, *, notes: Iterable[str] = ()) -> Annotations:
        """Returns all that was collected; two categories of one name are noted."""
        for name in dict.fromkeys(categories.values()):
            same = [str(number) for number, other in categories.items() if other == name]
            if len(same) > 1:
                text = f"categories {' and '.join(same)} are both named {name!r}"
                self.problems.append(f"{source}: {text}; rename one of them, or make them one")
        told = [*notes]
        if self.boxes:
            told.append(f"{source}: {self.boxes} object(s) are boxes, which are read as filled rectangles")
        return Annotations(self.images, categories, tuple(self.problems), tuple(told))


def numbered(names: Iterable[str]) -> dict[int, str]:
    """Returns names by numbers from 1, in alphabetical order: for formats whose categories have none."""
    return dict(enumerate(sorted(set(names)), start=1))


def names_by_number(content: Any) -> list[tuple[int, str]]:
    """Returns numbers and names of a list of names, or of {number: name}; a `ValueError` for what is neither."""
    if not isinstance(content, list | dict):
        raise ValueError(f"{str(content)[:40]!r} is neither a list of names nor numbers with names")
    pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    if wrong := [name for _, name in pairs if not isinstance(name, str | int)]:
        raise ValueError(f"{str(wrong[0])[:40]!r} is no name")
    return [(int(number), str(name)) for number, name in pairs]


def shown_problems(place: Path, problems: Sequence[str]) -> str:
    """Words one message for all that is wrong with a place; with no problem it names no picture."""
    lines = list(dict.fromkeys(problems)) or [f"{place}: names no picture"]
    return list_problems(f"{place} can't be imported; mend these, or take them out", lines)


def the_file(files: Sequence[Path], place: Path, what: str) -> Path:
    """Returns the only one of the files of a format at a place; a `DataError` where there is none, or are several."""
    if len(files) == 1:
        return files[0]
    found = ", ".join(path.name for path in files[:10]) or "none"
    raise DataError(f"{place}: one file of {what} is needed, found: {found}; give the file as SRC, or keep one there")


def pictures_in(folder: Path) -> list[Path]:
    """Returns the pictures directly in a folder, by name; none where there is no folder."""
    return sorted(path for path in folder.iterdir() if is_picture(path)) if folder.is_dir() else []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
