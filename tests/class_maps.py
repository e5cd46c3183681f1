"""Tiny pictures with maps of classes, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from helpers import draw
from PIL import Image

NAMES = {0: "ground", 1: "blob", 2: "stripe"}
IGNORED = 255


def write_maps(folder: Path, parts: Mapping[str, int] | None = None, *, palette: bool = False) -> Path:
    """Writes PART/images and PART/masks: on noise (0) a blob (1) and a stripe (2), with a frame that does not count."""
    for part, count in (parts or {"train": 4, "val": 2, "test": 2}).items():
        for number in range(count):
            write_map(folder / part, f"{part}{number}", palette=palette)
    return folder


def write_map(folder: Path, name: str, values: np.ndarray | None = None, *, palette: bool = False) -> Path:
    """Writes one picture, seeded by its name, with its map or another; returns the map's file."""
    rng = np.random.default_rng(sum(name.encode()))
    image, blob = draw(rng, height=40, width=48)
    image[30:36] = (60, 140, 220)
    if values is None:
        values = np.where(blob, 1, 0).astype(np.uint8)
        values[30:36] = 2
        values[:, :2] = IGNORED
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette([(37 * channel) % 256 for channel in range(768)])
    picture.save(folder / "masks" / f"{name}.png")
    return folder / "masks" / f"{name}.png"
