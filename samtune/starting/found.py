"""What was found in a data folder: what every kind of data has."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from samtune.config.pixels import RGB, Pixels
from samtune.data.facts import ImageFacts, group_near, hash_images
from samtune.data.splits import PARTS, Splits
from samtune.starting.names import Named
from samtune.types import ImageArray


class Sample(NamedTuple):
    """A picture for the sheet: its name, file, and what draws the truth on it, an (H, W, 3) uint8 RGB array."""

    name: str
    image: Path
    paint: Callable[[ImageArray], ImageArray]


class Share(NamedTuple):
    """A class, its share of the pixels or pictures, in [0, 1], and its value in the masks where they have values."""

    name: str
    share: float
    value: int | None = None


@dataclass(frozen=True)
class Pictures:
    """What the files of the pictures are.

    Attributes:
        sizes: (width, height) in pixels of each picture, EXIF orientation applied.
        channels: such as "8-bit colour" -> number of pictures, the most frequent first, as `formats`.
        same: pictures that have the pixels of an earlier one; `near` are those that nearly do, these included.
    """

    sizes: Sequence[tuple[int, int]]
    channels: Mapping[str, int]
    formats: Mapping[str, int]
    same: int
    near: int

    @property
    def longest(self) -> int:
        """The median of the longer sides, in pixels."""
        sides = sorted(max(size) for size in self.sizes)
        return sides[len(sides) // 2]


@dataclass(frozen=True)
class Found:
    """What is in a data folder.

    Attributes:
        why: what makes it data of this task.
        parts: number of pictures in train, val and test, as a run has them.
        notes: what the check of the data says.
        classes: by name; empty where there is one foreground.
        empty: pictures without an object.
        sides: of objects, rising, as a part of the longer side of their picture, from a sample; of classes that of
            the largest piece in each picture; empty where there are none.
        per_picture: median number of objects in a picture of the sample.
        samples: of train, spread evenly.
        named: what the annotations say; None of masks and folders.
        pixels: what a model has to take of the pictures.
        seed: that cuts the parts that the folder lacks.
        legend: draws the colours of the classes below the samples, for a width in pixels; None needs none.
    """

    task: str
    why: str
    parts: Mapping[str, int]
    notes: Sequence[str]
    pictures: Pictures
    classes: Sequence[Share] = ()
    empty: int = 0
    sides: Sequence[float] = ()
    per_picture: int = 0
    samples: Sequence[Sample] = ()
    named: Named | None = None
    pixels: Pixels = RGB
    seed: int = 0
    legend: Callable[[int], ImageArray] | None = None

    @property
    def total(self) -> int:
        """The number of pictures."""
        return sum(self.parts.values())


def look_at_pictures(files: Sequence[Path]) -> Pictures:
    """Returns what the files of pictures are; a `DataError` for one that can't be read."""
    facts = hash_images(files)
    groups = group_near(facts)
    return Pictures(
        sizes=[(fact.width, fact.height) for fact in facts],
        channels=dict(Counter(map(_channels, facts)).most_common()),
        formats=dict(Counter(path.suffix.lower()[1:] for path in files).most_common()),
        same=len(facts) - len({fact.content for fact in facts}),
        near=len(facts) - len(groups),
    )


def counts(splits: Splits[Any]) -> dict[str, int]:
    """Returns the number of pictures of each part."""
    return {part: len(getattr(splits, part)) for part in PARTS}


def _channels(facts: ImageFacts) -> str:
    """Words depth and channels, as of a file."""
    depth, colours = "8-bit", facts.channels - facts.alpha
    if facts.levels is not None:
        whole = all(float(level).is_integer() for level in facts.levels[:2])
        depth = "16-bit" if facts.scaled else "32-bit" if whole else "floating-point"
    named = {1: "grey", 3: "colour"} if facts.pages == 1 else {}
    text = f"{depth} {named[colours]}" if colours in named else f"{depth}, {facts.channels} channels"
    return f"{text} with alpha" if facts.alpha and colours in named else text
