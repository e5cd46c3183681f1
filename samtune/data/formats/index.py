"""Index pictures: `masks/` of class numbers, and a file that names them: `labels.txt`, or JSON.

A line of `labels.txt` is a name, whose number is that of the line from 0, or `NUMBER NAME`; of JSON, a list of names,
or {number: name}. 0 without a name is the background, and 255 without one counts nowhere.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np

from samtune.base.disk import write_bytes, write_text
from samtune.data.formats.annotations import Annotations, Reading, names_by_number
from samtune.data.formats.index_pictures import Values, index_png, read_values
from samtune.data.formats.shapes import Region, encode_rle
from samtune.data.pairs import scan_folder
from samtune.errors import DataError

_LISTS = ("labels.txt", "classes.txt", "labels.json", "classes.json")
_LINE = re.compile(r"(\d+)[\s:,;]+(\S.*)")
_MOST = 255


def read_index(place: Path) -> Annotations:
    """Reads `images/` and `masks/`: of each picture one object for each class, by the numbers of `labels.txt`.

    Raises:
        DataError: no list of classes, or one that is none.
    """
    file = labels_file(place)
    if file is None:
        raise DataError(f"{place}: no {', '.join(_LISTS)} there or above; it names the classes, one a line")
    names, reading = read_labels(file), Reading(place)
    pairs, problems = scan_folder(place)
    reading.problems += problems
    for pair in pairs:
        try:
            values = read_values(pair.mask)
        except DataError as error:
            reading.problems.append(str(error))
            continue
        image = reading.image(pair.image, pair.mask, values.shape[1], values.shape[0])
        for value in np.unique(values).tolist():
            if value in names:
                reading.add(image, f"value {value}", names[value], partial(_region, values, value))
            elif value not in (0, _MOST):
                reading.complain(pair.mask, f"value {value}", f"of no class in {file.name}; name it, or mend the mask")
    return reading.done(names, file)


def write_index(annotations: Annotations, folder: Path) -> Path:
    """Writes `masks/` and `labels.txt`; what no object covers is 0 where that has no name or is the ground, else 255.

    Raises:
        DataError: a number beyond 254.
    """
    names = annotations.categories
    if wrong := [number for number in names if not 0 <= number < _MOST]:
        raise DataError(f"category {wrong[0]} ({names[wrong[0]]}): index pictures have numbers from 0 to {_MOST - 1}")
    number_of = {name: number for number, name in names.items()}
    for stem, image in annotations.images.items():
        values = np.full((image.height, image.width), _MOST if 0 in names else 0, dtype=np.uint8)
        for item in image.objects:
            values[image.mask(item)] = number_of[item.category]
        write_bytes(folder / "masks" / f"{stem}.png", index_png(values, list(names)))
    write_text(folder / "labels.txt", "".join(f"{number} {name}\n" for number, name in sorted(names.items())))
    return folder / "masks"


def labels_file(place: Path) -> Path | None:
    """Returns the list of classes in a folder, or in the one above, for a part."""
    return next(
        (path for folder in (place, place.parent) for path in (folder / n for n in _LISTS) if path.is_file()), None
    )


def index_files(place: Path) -> list[Path]:
    """Returns the masks and the list of classes of a place; none where one of both is missing."""
    file = labels_file(place)
    masks = sorted((place / "masks").iterdir()) if (place / "masks").is_dir() else []
    return [file, *masks] if file is not None and masks else []


def read_labels(file: Path) -> dict[int, str]:
    """Returns the names of classes by their numbers.

    Raises:
        DataError: another file, a number twice or beyond 255.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        pairs = names_by_number(json.loads(text)) if file.suffix == ".json" else _lines(text)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: no list of classes ({error}); write one name a line, or NUMBER NAME") from error
    numbers = [number for number, _ in pairs]
    if not pairs or len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) > _MOST:
        raise DataError(f"{file}: expected names with different numbers from 0 to {_MOST}, got {numbers[:12]}")
    return dict(sorted(pairs))


def _region(values: Values, value: int) -> Region:
    return encode_rle(values == value)[0]


def _lines(text: str) -> list[tuple[int, str]]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    found = [_LINE.fullmatch(line) for line in lines if line]
    if found and all(found):
        return [(int(match[1]), match[2]) for match in found if match]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is empty, and the lines number the names")
    return list(enumerate(lines))
