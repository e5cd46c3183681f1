"""Draws pictures of five classes (sky, lawn, path, house, tree) with their maps, to try `task: semantic` on.

    uv run python scripts/make_class_sample.py --out data/yards

Made of three photographs of materials that come with scikit-image (brick, grass, gravel; CC0 of CC0Textures) and of
drawn skies, so the pictures are free (CC0). Tints vary widely: a lawn may be as brown as a path, and a sky as grey as
gravel, so that texture and place have to tell them. Picture `i` of a part depends on (SEED, part, i) only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from skimage import data

SEED = 20261
PARTS = {"train": 60, "val": 16, "test": 16}
CLASSES = ("sky", "lawn", "path", "house", "tree")
HEIGHT, WIDTH = 256, 320
Array = np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    """Writes `train/`, `val/` and `test/` with `images/` and `masks/`, and `labels.txt`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets train/, val/, test/ and labels.txt")
    parser.add_argument("--images", type=int, default=PARTS["train"], help="of train (60)")
    options = parser.parse_args(argv)
    for order, (part, count) in enumerate({**PARTS, "train": options.images}.items()):
        for kind in ("images", "masks"):
            (options.out / part / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, classes = draw_yard(np.random.default_rng((SEED, order, number)))
            name = f"{part}{number:03d}.png"
            cv2.imwrite(str(options.out / part / "images" / name), image[..., ::-1])
            cv2.imwrite(str(options.out / part / "masks" / name), classes)
    (options.out / "labels.txt").write_text("".join(f"{value} {name}\n" for value, name in enumerate(CLASSES)))


def draw_yard(rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a picture, (H, W, 3) uint8 RGB, and its map, (H, W) uint8 of places in `CLASSES`."""
    xs, ys = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    horizon = rng.uniform(0.3, 0.55) * HEIGHT + 0.03 * HEIGHT * (_noise(rng, 40)[0] - 0.5)
    classes = np.where(ys < horizon, 0, 1).astype(np.uint8)
    near = np.clip((ys - horizon) / (HEIGHT - horizon), 0, 1)
    middle = rng.uniform(0.2, 0.8) + rng.uniform(-0.4, 0.4) * near + 0.08 * np.sin(rng.uniform(3, 7) * near)
    classes[(np.abs(xs / WIDTH - middle) < 0.02 + rng.uniform(0.08, 0.25) * near) & (classes == 1)] = 2
    left, width, foot = (rng.uniform(*ends) for ends in ((-0.1, 0.8), (0.2, 0.45), (0.02, 0.15)))
    top = rng.uniform(0.08, 0.3) * HEIGHT
    bottom = horizon.mean() + foot * HEIGHT
    classes[(xs > left * WIDTH) & (xs < (left + width) * WIDTH) & (ys > top) & (ys < bottom)] = 3
    for _ in range(rng.integers(1, 4)):
        _plant(rng, classes, xs, ys, float(horizon.mean()))
    return _paint(rng, classes, ys), classes


def _plant(rng: np.random.Generator, classes: Array, xs: Array, ys: Array, horizon: float) -> None:
    """Puts a tree in front of what is there: a trunk, and a crown with a ragged edge."""
    x, size = rng.uniform(0, WIDTH), rng.uniform(18, 52)
    foot = horizon + rng.uniform(0.05, 0.35) * HEIGHT
    crown = foot - size * rng.uniform(1.2, 2.2)
    ragged = 0.7 + 0.6 * _noise(rng, 10)
    round_part = ((xs - x) / size) ** 2 + ((ys - crown) / (size * rng.uniform(0.7, 1.2))) ** 2 < ragged
    trunk = (np.abs(xs - x) < size / 9) & (ys > crown) & (ys < foot)
    classes[round_part | trunk] = 4


def _paint(rng: np.random.Generator, classes: Array, ys: Array) -> Array:
    """Fills each class with its material in a tint of the day, under one light."""
    sky = 0.55 + 0.35 * _noise(rng, 50) * rng.uniform(0.2, 1) - 0.2 * ys / HEIGHT
    grass, gravel, brick, leaves = (_cut(rng, name) for name in ("grass", "gravel", "brick", "grass"))
    crowns = np.clip(leaves * (0.35 + 1.1 * _noise(rng, 12)), 0, 1)
    grey = np.select([classes == place for place in range(5)], [sky, grass, gravel, brick, crowns])
    centres = np.array([(0.9, 1, 1.15), (0.9, 1.05, 0.7), (1.05, 1, 0.9), (1.15, 0.9, 0.8), (0.8, 1, 0.65)])
    tints = np.clip(centres + rng.normal(0, 0.16, (5, 3)), 0.4, 1.5)
    light = rng.uniform(0.7, 1.15) * (0.8 + 0.4 * _noise(rng, 90))
    picture = cv2.GaussianBlur((grey * light)[..., None] * tints[classes], (0, 0), rng.uniform(0.4, 0.9))
    noisy = picture + rng.normal(0, rng.uniform(0.01, 0.04), picture.shape)
    return np.clip(255 * noisy, 0, 255).astype(np.uint8)


def _cut(rng: np.random.Generator, name: str) -> Array:
    """Returns a piece of a material, (H, W) in [0, 1], scaled by chance."""
    whole = getattr(data, name)().astype(np.float32) / 255
    side = rng.integers(HEIGHT, whole.shape[0])
    row, column = (rng.integers(0, whole.shape[axis] - side + 1) for axis in (0, 1))
    piece = cv2.resize(whole[row : row + side, column : column + side], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.clip(0.5 + (piece - piece.mean()) * rng.uniform(0.8, 1.3) + rng.normal(0, 0.08), 0, 1)


def _noise(rng: np.random.Generator, scale: float) -> Array:
    """Returns smooth noise, (H, W) from 0 to 1, whose lumps are about `scale` pixels wide."""
    rough = rng.random((HEIGHT, WIDTH)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), scale / 2.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


if __name__ == "__main__":
    main()
