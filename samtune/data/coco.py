"""How do COCO's polygons and run lengths become masks, and masks run lengths? All objects of an image are one mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from samtune.data.verify import list_problems
from samtune.errors import DataError

if TYPE_CHECKING:
    from samtune.types import MaskArray

Plan = dict[str, tuple[Path, Mapping[str, Any], list[Any]]]
"""Stem to the picture, its entry in the file, and the segmentations of its objects."""


def import_coco(source: Path, target: Path) -> int:
    """Writes `images/` and `masks/` of a file of COCO; returns the number of images.

    Args:
        source: the file, or a folder that has one, with the pictures beside or below it.

    Raises:
        DataError: no such file or several, absent or doubled pictures, segmentations that are none; all are listed.
    """
    file = _annotations(source)
    plan = _plan(file, source if source.is_dir() else source.parent)
    partial = {name: target / f"{name}.part" for name in ("images", "masks")}  # get their names when complete
    for folder in partial.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    problems = []
    for stem, (picture, entry, shapes) in plan.items():
        try:
            mask = _mask(shapes, int(entry["height"]), int(entry["width"]))
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"{file}: {picture.name}: a segmentation that can't be drawn ({error})")
            continue
        shutil.copyfile(picture, partial["images"] / f"{stem}{picture.suffix}")
        Image.fromarray(mask * np.uint8(255)).save(partial["masks"] / f"{stem}.png")
    if problems:
        raise DataError(list_problems(f"{file} can't be imported; mend these, or take them out", problems))
    for name, folder in partial.items():
        folder.rename(target / name)
    return len(plan)


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


def _plan(file: Path, root: Path) -> Plan:
    """Finds the picture of each entry below `root`, and nowhere else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        shapes: dict[Any, list[Any]] = {entry["id"]: [] for entry in images}
        for annotation in annotations:
            shapes.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
        names = [str(entry["file_name"]) for entry in images]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not a file of COCO ({type(error).__name__}: {error}); export it again") from error
    places = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    plan: Plan = {}
    problems = []
    for name, entry in zip(names, images, strict=True):
        paths = [place / name for place in places if (place / name).is_file()]
        if not paths or not paths[0].resolve().is_relative_to(root.resolve()):
            problems.append(f"{file}: names {name}, which is not in {root}")
        elif paths[0].stem in plan:
            problems.append(f"{file}: names {name}, and another picture of this stem; rename one of them")
        else:
            plan[paths[0].stem] = (paths[0], entry, shapes[entry["id"]])
    if problems or not plan:
        raise DataError(list_problems(f"{file} can't be imported", problems or [f"{file}: names no image"]))
    return plan


def _mask(shapes: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Draws polygons, and run lengths plain or packed, into one (H, W) uint8 mask of 0 and 1."""
    from pycocotools import mask as coco

    drawn = np.zeros((height, width), dtype=np.uint8)
    for shape in shapes:
        if isinstance(shape, list):
            if not shape or any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
                raise ValueError("a polygon is 6 numbers or more, x and y in turn")
            packed = coco.merge(coco.frPyObjects(shape, height, width))
        else:
            if list(shape["size"]) != [height, width]:
                raise ValueError(f"size {shape['size']}, but the image has {[height, width]}")
            plain = isinstance(shape["counts"], list)
            if plain and sum(shape["counts"]) != height * width:
                raise ValueError("run lengths that do not fill the image")
            packed = coco.frPyObjects(shape, height, width) if plain else shape
        drawn |= coco.decode(packed)
    return drawn


def encode_rle(mask: MaskArray) -> tuple[dict[str, Any], int, list[float]]:
    """Returns COCO's `{"size": [H, W], "counts": str}` of an (H, W) bool mask, its area in pixels, and its box.

    The box is x, y, width, height, all 0 for an empty mask.
    """
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode("ascii")
    return {"size": list(mask.shape), "counts": counts}, int(coco.area(rle)), coco.toBbox(rle).tolist()
