"""Are the values of masks two levels, classes, or objects? Told from a sample of the files, or said to be unclear."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from samtune.data.pairs import scan_folder
from samtune.data.pictures import is_picture, open_picture
from samtune.data.splits import PARTS
from samtune.errors import DataError

LOOKED_AT = 40  # masks
MOST_CLASSES = 64  # values of one mask that are still taken for classes
ALONE = 0.95  # share of values with one connected piece from which each may be an object


class Labels(NamedTuple):
    """The values of a mask but 0 and 255: which are there, and how many of them are one connected piece."""

    values: list[int]
    alone: int


def label_kind(folder: Path) -> tuple[str, str]:
    """Returns what the masks of a folder of pairs show, and the words for it.

    "two": two values, or what only a reader of binary masks can judge. "classes": the same values mean the same in all
    masks. "objects": too many values for classes. "unclear": 1 to n in each mask, each one piece, and n differs.
    """
    found = list(_sample(folder))
    labelled = [labels for labels in found if len(labels.values) > 1]
    if not labelled:
        return "two", "masks of two values"
    values = [value for labels in labelled for value in labels.values]
    words = f"masks with up to {max(len(labels.values) for labels in labelled)} values beside 0, {min(values)} to "
    words += f"{max(values)} in the {len(found)} looked at"
    if max(values) > 255 or max(len(labels.values) for labels in labelled) > MOST_CLASSES:
        return "objects", words
    counted = all(labels.values == list(range(1, len(labels.values) + 1)) for labels in labelled)
    differ = len({len(labels.values) for labels in labelled}) > 1
    alone = sum(labels.alone for labels in labelled) / len(values)
    if counted and differ and alone >= ALONE:
        return "unclear", f"{words}: from 1 on without a gap, and {alone:.0%} of them in one connected piece"
    return "classes", words


def twin_folder(folder: Path) -> str | None:
    """Says which of the only two folders of pictures, here or in train/, looks like masks of the other's; else None.

    Both have the same stems, and the first picture in one of them alone has few values.
    """
    top = folder / "train" if (folder / "train").is_dir() else folder
    places = sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [{path.stem: path for path in place.iterdir() if is_picture(path)} for place in places]
    if len(files) != 2 or not files[0] or files[0].keys() != files[1].keys():
        return None
    few = [place.name for place, found in zip(places, files, strict=True) if _has_few_values(found[min(found)])]
    if len(few) != 1:
        return None
    return f"{places[0].name}/ and {places[1].name}/ have pictures of the same names, those in {few[0]}/ of few values"


def _has_few_values(path: Path) -> bool:
    try:
        with open_picture(path) as picture:
            return len(np.unique(np.asarray(picture))) <= MOST_CLASSES
    except DataError:
        return False  # the check of the data tells it, with all others


def spread(items: Sequence[Any], most: int) -> list[int]:
    """Returns the indices of at most so many items, evenly over all."""
    step = max(1.0, len(items) / most)
    return [int(index * step) for index in range(min(most, len(items)))]


def mask_values(folder: Path) -> set[int]:
    """Returns the values of the masks of a sample, 0 left out, and 255 where a mask has others."""
    return {value for labels in _sample(folder) for value in labels.values}


def _sample(folder: Path) -> Iterator[Labels]:
    """Yields the labels of masks whose values are exact; soft masks and colours are left to who reads them."""
    pairs = [pair for place in (folder, *(folder / part for part in PARTS)) for pair in scan_folder(place)[0]]
    for index in spread(pairs, LOOKED_AT):
        try:
            with open_picture(pairs[index].mask) as picture:
                if picture.format in ("JPEG", "MPO") or picture.mode not in ("L", "P", "I", "I;16", "I;16B"):
                    continue
                values = np.asarray(picture)
        except DataError:
            continue  # the check of the data tells it, with all others
        levels = np.unique(values).tolist()
        if len(levels) > 8 and 240 <= levels[-1] <= 255 and (_mostly_two(values) or len(levels) <= levels[-1]):
            continue  # grey edges of a soft mask: few pixels, or levels with gaps between them
        kept = [v for v in levels if v not in (0, 255)] or [v for v in levels if v]
        yield Labels(kept, _alone(values, kept))


def _mostly_two(values: np.ndarray) -> bool:
    """Tells whether 0 and the highest value are most of a mask: levels between are edges then, not labels."""
    return bool(np.mean((values > 0) & (values < values.max())) <= 0.3)


def _alone(values: np.ndarray, levels: Sequence[int]) -> int:
    pieces = (cv2.connectedComponents((values == v).astype(np.uint8), connectivity=8)[0] - 1 for v in levels)
    return sum(count == 1 for count in pieces)
