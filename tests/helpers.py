"""What several tests need: tiny pictures with masks, on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RunCommand = Callable[..., tuple[int, str]]
"""Runs a command with these arguments; returns its exit code and what it wrote to stderr."""


def write_data(folder: Path, *, train: int = 6, val: int = 3, test: int = 3, seed: int = 0) -> Path:
    """Writes a data folder with lists of names: noise in which a bright ellipse is the foreground.

    Args:
        folder: gets `images/`, `masks/` and `splits/`.
        train: number of training pictures.
        val: number of validation pictures.
        test: number of test pictures.
        seed: of everything.

    Returns:
        The folder.
    """
    for sub in ("images", "masks", "splits"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    names = [f"p{index:02d}" for index in range(train + val + test)]
    parts = {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}
    for part, members in parts.items():
        (folder / "splits" / f"{part}.txt").write_text("\n".join([*members, ""]))
    for index, name in enumerate(names):
        image, mask = draw(np.random.default_rng((seed, index)), height=40 + 2 * (index % 3), width=48)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    return folder


def draw(rng: np.random.Generator, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an (H, W, 3) uint8 picture and its (H, W) bool mask.

    The background is coarse noise, so that no two pictures count as near-duplicates.
    """
    coarse = Image.fromarray(rng.integers(0, 128, (6, 8, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.NEAREST))
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0.35, 0.65, 2) * (height, width)
    radii = rng.uniform(0.15, 0.3, 2) * (height, width)
    mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    image[mask] = (220, 120, 90)
    return image, mask
