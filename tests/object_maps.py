"""Tiny pictures with maps of objects, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

DISCS = ((10, 12, 6), (26, 14, 7), (14, 32, 6), (14, 43, 4))
"""Row, column and radius of each object; the last two touch."""
SIZE = (40, 48)


def write_objects(folder: Path, parts: Mapping[str, int] | None = None) -> Path:
    """Writes PART/images and PART/instances: bright discs on coarse noise, that shift from picture to picture."""
    for part, count in (parts or {"train": 4, "val": 2, "test": 2}).items():
        for number in range(count):
            write_object_map(folder / part, f"{part}{number}")
    return folder


def discs(shift: int = 0) -> np.ndarray:
    """Returns the map of the discs, moved down by some rows: (40, 48) int32."""
    labels = np.zeros(SIZE, dtype=np.int32)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for number, (row, column, radius) in enumerate(DISCS, start=1):
        labels[((rows - row - shift) ** 2 + (columns - column) ** 2 <= radius**2) & (labels == 0)] = number
    return labels


def mosaic(down: int, across: int) -> np.ndarray:
    """Returns the maps of discs side by side, each object with a number of its own: an answer that is known."""
    rows = []
    for row in range(down):
        parts = [discs((row + column) % 4) for column in range(across)]
        numbered = [np.where(part, part + 4 * (row * across + column), 0) for column, part in enumerate(parts)]
        rows.append(np.hstack(numbered))
    return np.vstack(rows).astype(np.int32)


def write_object_map(folder: Path, name: str, labels: np.ndarray | None = None) -> Path:
    """Writes one picture, seeded by its name, with its map or another; returns the map's file."""
    rng = np.random.default_rng(sum(name.encode()))
    coarse = Image.fromarray(rng.integers(0, 128, (6, 8, 3), dtype=np.uint8))
    drawn = discs(int(rng.integers(0, 5))) if labels is None else labels
    image = np.array(coarse.resize(drawn.shape[::-1], Image.Resampling.NEAREST))
    image[drawn > 0] = (220, 120, 90)
    image[(drawn > 0) & (drawn % 2 == 0)] = (180, 160, 60)
    for sub in ("images", "instances"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    Image.fromarray(drawn.astype(np.uint16)).save(folder / "instances" / f"{name}.png")
    return folder / "instances" / f"{name}.png"
