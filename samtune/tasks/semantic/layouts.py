"""How do folders of binary masks per class, and COCO's annotations, become maps? Drawn once, and kept in the cache."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtune.data.cache import drawn_file, save_drawn
from samtune.data.coco import CocoImage, draw_objects, find_annotations, read_coco
from samtune.data.pairs import Pair, by_stem, scan_folder
from samtune.data.pictures import read_image
from samtune.data.splits import PARTS
from samtune.errors import DataError
from samtune.tasks.binary import read_mask

logger = logging.getLogger(__name__)

GROUND = "background"
"""The class of pixels that no mask or object covers."""


@dataclass(frozen=True)
class Drawing:
    """Which value each class gets in the maps that are drawn.

    Attributes:
        values: of names; a class that is not there is an error.
        ground: of pixels that belong to none.
    """

    values: Mapping[str, int]
    ground: int

    def value(self, name: str) -> int:
        """Returns the value of a class; a `DataError` for a name that is not in the list."""
        if name not in self.values:
            raise DataError(f"class {name!r} is not in data.classes ({', '.join(self.values)}); add it there")
        return self.values[name]


def labels_of(folder: Path) -> dict[int, str]:
    """Returns the classes that a data folder names itself, by the values that they get; {} where maps say values only.

    0 is the background; the others follow in the order of their folders' names, or of COCO's categories.

    Raises:
        DataError: a file of COCO that can't be read.
    """
    found: dict[str, None] = {}
    for place in (folder, *(folder / part for part in PARTS)):
        names = sorted(path.name for path in _folders(place))
        if not names and _is_coco(place):
            names = list(dict(sorted(read_coco(place).categories.items())).values())
        found |= dict.fromkeys(names)
    ordered = [GROUND, *(name for name in found if name != GROUND)]
    return dict(enumerate(ordered)) if found else {}


def has_labels(folder: Path) -> bool:
    """Tells by names alone whether a data folder, or a part of it, has a folder per class, or a file of COCO alone."""
    return any(_folders(place) or _is_coco(place) for place in (folder, *(folder / part for part in PARTS)))


def scan_maps(drawing: Drawing | None, folder: Path) -> tuple[list[Pair], list[str]]:
    """Returns the complete pairs of a folder, and a line per problem; maps that a layout only implies are drawn first.

    Args:
        drawing: the values of named classes; None where no part of the data names any.
    """
    if drawing is not None and _folders(folder):
        return _scan_folders(folder, drawing)
    if drawing is not None and _is_coco(folder):
        return _scan_coco(folder, drawing)
    return scan_folder(folder)


def _folders(folder: Path) -> list[Path]:
    masks = folder / "masks"
    return [path for path in sorted(masks.iterdir()) if path.is_dir() and path.name[0] != "."] if masks.is_dir() else []


def _is_coco(folder: Path) -> bool:
    """Tells whether a folder without masks/ has one file of annotations, and not another list in JSON."""
    files = find_annotations(folder) if not (folder / "masks").exists() else []
    return len(files) == 1 and b'"annotations"' in files[0].read_bytes()


def _scan_folders(folder: Path, drawing: Drawing) -> tuple[list[Pair], list[str]]:
    """Reads images/ and masks/CLASS/: an image without a file in a class does not show it."""
    images, wrong = by_stem(folder / "images") if (folder / "images").is_dir() else ({}, {})
    problems = [*wrong.values()] if images or wrong else [f"{folder}: images/ with pictures is missing"]
    masks: dict[str, dict[str, Path]] = {}
    for place in _folders(folder):
        try:
            drawing.value(place.name)
        except DataError as error:
            problems.append(f"{place}: {error}")
        found, wrong = by_stem(place)
        problems += wrong.values()
        for stem, path in found.items():
            masks.setdefault(stem, {})[place.name] = path
    for stem in sorted(images.keys() ^ masks.keys()):
        path = images.get(stem) or next(iter(masks[stem].values()))
        missing = f"no mask named {stem}.* in any masks/CLASS/" if stem in images else f"no image named {stem}.*"
        problems.append(f"{path}: {missing}; add it, or take this out")
    pairs = []
    for stem in () if problems else sorted(images):
        try:
            pairs.append(Pair(stem, images[stem], _drawn_masks(images[stem], masks[stem], drawing)))
        except DataError as error:
            problems.append(str(error))
    return pairs, problems


def _drawn_masks(image: Path, masks: Mapping[str, Path], drawing: Drawing) -> Path:
    target = drawn_file("class-maps", image, [image, *masks.values()], f"{sorted(masks)} {drawing}")
    if target.is_file():
        return target
    size = read_image(image).shape[:2]
    values, overlap = np.full(size, drawing.ground, dtype=np.uint8), 0
    taken = np.zeros(size, dtype=bool)
    for name in (name for name in drawing.values if name in masks):
        mask = read_mask(masks[name])
        if mask.shape != size:
            found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, size))
            raise DataError(
                f"{masks[name]}: size mismatch, mask {found}, image {wanted}; export it at the image's size"
            )
        overlap += int((mask & taken).sum())
        taken |= mask
        values[mask] = drawing.values[name]
    if overlap:
        logger.warning("%s: %d pixels are in masks of two classes; the later class counts", image, overlap)
    return save_drawn(target, values)


def _scan_coco(folder: Path, drawing: Drawing) -> tuple[list[Pair], list[str]]:
    """Reads a file of COCO: objects are drawn in its order, later ones over earlier ones."""
    try:
        coco = read_coco(folder)
    except DataError as error:
        return [], [str(error)]

    def value_of(category: object) -> int:
        name = coco.categories.get(category) if isinstance(category, int) else None
        if name is None:
            raise DataError(f"category_id {category!r} is not among its categories; mend the file")
        return drawing.value(name)

    def drawn(image: CocoImage) -> Path:
        target = drawn_file("class-maps", image.picture, [image.picture, coco.file], str(drawing))
        return target if target.is_file() else save_drawn(target, draw_objects(image, value_of, drawing.ground))

    pairs, problems = [], dict[str, None]()
    for stem, image in sorted(coco.images.items()):
        try:
            pairs.append(Pair(stem, image.picture, drawn(image)))
        except DataError as error:
            problems[f"{coco.file}: {error}"] = None
    return pairs, list(problems)
