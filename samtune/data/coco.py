"""How do COCO's polygons and run lengths become masks, and masks run lengths? All objects of an image are one mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from samtune.data.verify import list_problems
from samtune.errors import DataError

if TYPE_CHECKING:
    from samtune.types import MaskArray


class CocoImage(NamedTuple):
    """A picture, its size in the file of annotations, and of each of its objects the segmentation and category."""

    picture: Path
    width: int
    height: int
    objects: list[tuple[Any, Any]]


class Coco(NamedTuple):
    """What a file of COCO says.

    Attributes:
        images: by stem.
        categories: id -> name; empty where the file has none.
    """

    file: Path
    images: dict[str, CocoImage]
    categories: dict[int, str]


def import_coco(source: Path, target: Path) -> int:
    """Writes `images/` and `masks/` of a file of COCO; returns the number of images.

    Args:
        source: the file, or a folder that has one, with the pictures beside or below it.

    Raises:
        DataError: no such file or several, absent or doubled pictures, segmentations that are none; all are listed.
    """
    coco = read_coco(source)
    partial = {name: target / f"{name}.part" for name in ("images", "masks")}  # get their names when complete
    for folder in partial.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    problems = []
    for stem, image in coco.images.items():
        try:
            mask = draw_objects(image, lambda _: 1)
        except DataError as error:
            problems.append(f"{coco.file}: {error}")
            continue
        shutil.copyfile(image.picture, partial["images"] / f"{stem}{image.picture.suffix}")
        Image.fromarray(mask * np.uint8(255)).save(partial["masks"] / f"{stem}.png")
    if problems:
        raise DataError(list_problems(f"{coco.file} can't be imported; mend these, or take them out", problems))
    for name, folder in partial.items():
        folder.rename(target / name)
    return len(coco.images)


def read_coco(source: Path) -> Coco:
    """Reads a file of COCO, or the one in a folder, and finds its pictures beside or below it.

    Raises:
        DataError: no such file or several, absent or doubled pictures, or another file; all is listed.
    """
    file = _annotations(source)
    return _plan(file, source if source.is_dir() else source.parent)


def draw_objects(image: CocoImage, value_of: Callable[[Any], int], start: int = 0) -> np.ndarray:
    """Draws the objects of a picture, in their order, with a value for each category, over `start`: (H, W) uint8.

    Raises:
        DataError: a segmentation that is none.
    """
    drawn = np.full((image.height, image.width), start, dtype=np.uint8)
    try:
        for shape, category in image.objects:
            drawn[_mask(shape, image.height, image.width) > 0] = value_of(category)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{image.picture.name}: a segmentation that can't be drawn ({error})") from error
    return drawn


def find_annotations(folder: Path) -> list[Path]:
    """Returns the files in a folder that may be COCO's, by their names."""
    return [path for place in (folder, folder / "annotations") for path in sorted(place.glob("*.json"))]


def _annotations(source: Path) -> Path:
    if source.is_file():
        return source
    found = find_annotations(source)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found[:10]) or "none"
    raise DataError(f"{source}: one file of annotations (.json) is needed, found: {names}; give the file as SRC")


def _plan(file: Path, root: Path) -> Coco:
    """Finds the picture of each entry below `root`, and nowhere else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        objects: dict[Any, list[tuple[Any, Any]]] = {entry["id"]: [] for entry in images}
        for annotation in annotations:
            found = annotation["segmentation"], annotation.get("category_id")
            objects.setdefault(annotation["image_id"], []).append(found)
        names = [str(entry["file_name"]) for entry in images]
        sizes = [(int(entry["width"]), int(entry["height"])) for entry in images]
        categories = {int(entry["id"]): str(entry["name"]) for entry in content.get("categories", [])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not a file of COCO ({type(error).__name__}: {error}); export it again") from error
    places = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    plan: dict[str, CocoImage] = {}
    problems = []
    for name, entry, size in zip(names, images, sizes, strict=True):
        paths = [place / name for place in places if (place / name).is_file()]
        if not paths or not paths[0].resolve().is_relative_to(root.resolve()):
            problems.append(f"{file}: names {name}, which is not in {root}")
        elif paths[0].stem in plan:
            problems.append(f"{file}: names {name}, and another picture of this stem; rename one of them")
        else:
            plan[paths[0].stem] = CocoImage(paths[0], *size, objects[entry["id"]])
    if problems or not plan:
        raise DataError(list_problems(f"{file} can't be imported", problems or [f"{file}: names no image"]))
    return Coco(file, plan, categories)


def _mask(shape: Any, height: int, width: int) -> np.ndarray:
    """Draws polygons, or run lengths plain or packed, as an (H, W) uint8 mask of 0 and 1."""
    from pycocotools import mask as coco

    if isinstance(shape, list):
        if not shape or any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
            raise ValueError("a polygon is 6 numbers or more, x and y in turn")
        return coco.decode(coco.merge(coco.frPyObjects(shape, height, width)))  # type: ignore[no-any-return]
    if list(shape["size"]) != [height, width]:
        raise ValueError(f"size {shape['size']}, but the image has {[height, width]}")
    plain = isinstance(shape["counts"], list)
    if plain and sum(shape["counts"]) != height * width:
        raise ValueError("run lengths that do not fill the image")
    return coco.decode(coco.frPyObjects(shape, height, width) if plain else shape)  # type: ignore[no-any-return]


def encode_rle(mask: MaskArray) -> tuple[dict[str, Any], int, list[float]]:
    """Returns COCO's `{"size": [H, W], "counts": str}` of an (H, W) bool mask, its area in pixels, and its box.

    The box is x, y, width, height, all 0 for an empty mask.
    """
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode("ascii")
    return {"size": list(mask.shape), "counts": counts}, int(coco.area(rle)), coco.toBbox(rle).tolist()
