"""Tiny pictures with annotations: of a place, what each format's writer and reader take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from samtune.data.formats.annotations import Annotated, Annotation, Annotations
from samtune.data.formats.shapes import encode_rle, polygon
from samtune.data.formats.table import WRITERS

HEIGHT, WIDTH = 20, 30
RING = np.zeros((HEIGHT, WIDTH), dtype=bool)
RING[3:15, 4:20] = True
RING[6:10, 8:14] = False  # a hole
RING[7, 10] = True  # an island in it
RING[17, 25] = True  # a piece of one pixel
FAR = np.zeros((HEIGHT, WIDTH), dtype=bool)
FAR[2:14, 22:29] = True
TRIANGLE = polygon([[1.0, 15.0], [9.3, 15.2], [3.7, 19.9]])
CATEGORIES = {1: "cat", 2: "dog"}


def annotations(folder: Path, *, names: tuple[str, ...] = ("a", "b", "c")) -> Annotations:
    """Writes pictures of noise into `images/`; returns a ring with a hole, a block and a triangle, and an empty one."""
    images = {}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / "images" / f"{name}.png"
        noise = np.random.default_rng((number, sum(name.encode()))).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        ring, block = (Annotation(n, encode_rle(m)[0]) for n, m in (("cat", RING), ("dog", FAR)))
        objects = [[ring, block], [Annotation("dog", (TRIANGLE,)), block], []][number % 3]
        images[name] = Annotated(path, path, WIDTH, HEIGHT, objects)
    return Annotations(images, CATEGORIES)


def write_format(name: str, folder: Path, *, names: tuple[str, ...] = ("a", "b", "c")) -> Annotations:
    """Writes pictures and their annotations in a format; returns what was written."""
    made = annotations(folder, names=names)
    WRITERS[name](made, folder)
    return made


def masks_of(found: Annotations) -> dict[tuple[str, str], np.ndarray]:
    """Returns where the objects of each category are, by stem of the picture and category."""
    empty = np.zeros((HEIGHT, WIDTH), dtype=bool)
    return {
        (stem, category): np.any(
            [empty, *(image.mask(item) for item in image.objects if item.category == category)], axis=0
        )
        for stem, image in found.images.items()
        for category in ("cat", "dog")
    }
