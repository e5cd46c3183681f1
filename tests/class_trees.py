"""Tiny generated data sets in the layouts of the public releases.

A class is a colour with stripes of one direction, so that a tiny model can learn it; coarse noise keeps the images
of a class from being near-duplicates of each other.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = tuple(f"n{1440764 + 7 * index:08d}" for index in range(10))
FGVC_FOLDERS = {
    "cub": ("CUB_200_2011", "images"),
    "nabirds": ("nabirds", "images"),
    "oxford_flowers": ("OxfordFlower", "jpg"),
    "stanford_cars": ("Stanford-cars", "."),
    "stanford_dogs": ("Stanford-dogs", "Images"),
}


def class_picture(label: int, item: int, *, size: int = 40, classes: int = 3) -> Image.Image:
    """Returns an RGB picture of a class; the same (label, item, size, classes) gives the same picture."""
    rng = np.random.default_rng((label, item))
    colour = np.array(colorsys.hsv_to_rgb(label / classes, 0.8, 0.9)) * 255
    rows, columns = np.mgrid[:size, :size]
    angle = np.pi * label / classes
    stripes = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) * 6 * np.pi / size + rng.uniform(0, 6))
    noise = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    light = 0.6 + 0.2 * stripes + 0.3 * (np.asarray(noise) / 255 - 0.5)
    return Image.fromarray(np.clip(light[..., None] * colour, 0, 255).astype(np.uint8))


def write_class_folders(
    folder: Path, *, classes: int = 3, train: int = 4, val: int = 2, test: int = 2, size: int = 40
) -> Path:
    """Writes DIR/PART/class_N/NNN.png with so many images per class; a part of 0 images is left out."""
    start = 0
    for part, count in (("train", train), ("val", val), ("test", test)):
        for label in range(classes):
            items = range(start, start + count)
            _write(folder / part / f"class_{label}", label, items, size=size, classes=classes, suffix=".png")
        start += count
    return folder


def write_vtab(
    folder: Path, task: str = "cifar", *, classes: int = 3, train: int = 6, val: int = 3, test: int = 6, size: int = 40
) -> Path:
    """Writes DIR/TASK with the four lists and the pictures of a VTAB-1k task; counts are of all classes together."""
    root = folder / task
    parts = {"train800": range(train), "val200": range(train, train + val), "train800val200": range(train + val)}
    parts["test"] = range(train + val, train + val + test)
    for part, items in parts.items():
        place = root / "images" / part
        lines = []
        for number, item in enumerate(items):
            label = item % classes
            _save(class_picture(label, item, size=size, classes=classes), place / f"{number:06d}.jpg")
            lines.append(f"images/{place.name}/{number:06d}.jpg {label}\n")
        (root / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def write_fgvc(
    folder: Path, name: str = "cub", *, classes: int = 3, train: int = 4, val: int = 2, test: int = 2, size: int = 40
) -> Path:
    """Writes DIR/FOLDER with pictures and the VPT lists train.json, val.json, test.json; counts are per class."""
    data_set, pictures = FGVC_FOLDERS[name]
    root = folder / data_set
    start = 0
    for part, count in (("train", train), ("val", val), ("test", test)):
        listed = {}
        for label in range(classes):
            kind = f"{label + 1:03d}.Kind_{label}"
            items = range(start, start + count)
            place = root / pictures / kind
            for path in _write(place, label, items, size=size, classes=classes, suffix=".jpg"):
                listed[path.relative_to(root / pictures).as_posix()] = label + 1
        (root / f"{part}.json").write_text(json.dumps(listed), encoding="utf-8")
        start += count
    return folder


def write_imagenet(folder: Path, *, classes: int = 3, train: int = 6, val: int = 2, size: int = 40) -> Path:
    """Writes DIR/train/WNID/*.JPEG and DIR/val/WNID/*.JPEG, the layout of ImageNet-1k."""
    for part, items in (("train", range(train)), ("val", range(train, train + val))):
        for label in range(classes):
            _write(folder / part / WNIDS[label], label, items, size=size, classes=classes, suffix=".JPEG")
    return folder


def write_imagenet_c(
    folder: Path,
    *,
    classes: int = 3,
    images: int = 2,
    corruptions: Iterable[str] = ("gaussian_noise", "fog"),
    severities: Iterable[int] = (1, 5),
    size: int = 40,
) -> Path:
    """Writes DIR/CORRUPTION/SEVERITY/WNID/*.JPEG: the pictures of a class with seeded noise."""
    severities = list(severities)
    for number, corruption in enumerate(corruptions):
        for severity in severities:
            for label in range(classes):
                for item in range(images):
                    clean = np.asarray(class_picture(label, 100 + item, size=size, classes=classes)).astype(int)
                    noise = np.random.default_rng((number, severity, label, item)).normal(0, 8 * severity, clean.shape)
                    picture = Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8))
                    place = folder / corruption / str(severity) / WNIDS[label]
                    _save(picture, place / f"ILSVRC2012_val_{item:08d}.JPEG")
    return folder


def _write(place: Path, label: int, items: range, *, size: int, classes: int, suffix: str) -> list[Path]:
    paths = [place / f"{item:03d}{suffix}" for item in items]
    for item, path in zip(items, paths, strict=True):
        _save(class_picture(label, item, size=size, classes=classes), path)
    return paths


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=95)
