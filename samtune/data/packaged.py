"""Real pictures that come with packages, so that they need no network, as folders of classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from samtune.data.importing import write_class_images
from samtune.data.splits import PARTS

SIDE = 64
"""Pixels of each side of what is written; the pictures are smaller and enlarged by cubic interpolation."""


class PackagedData(NamedTuple):
    """A data set that a package ships.

    Attributes:
        write: fills a folder with `train/`, `val/` and `test/`, cut with a fixed seed.
    """

    licence: str
    write: Callable[[Path], None]


def _write_digits(target: Path) -> None:
    """Writes scikit-learn's handwritten digits, of 8 x 8 pixels: 20 train and 10 val of each, the other 1,497 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    _write(digits.images / 16, [str(digit) for digit in digits.target], (20, 10), target)


def _write_faces(target: Path) -> None:
    """Writes scikit-image's faces and other things, of 25 x 25 pixels: 10 train, 10 val and 80 test of each."""
    from skimage.data import lfw_subset

    levels: np.ndarray = lfw_subset()
    _write(levels, ["face"] * 100 + ["other"] * 100, (10, 10), target)


def _write(levels: np.ndarray, labels: Sequence[str], sizes: tuple[int, int], target: Path) -> None:
    """Writes the pictures of each class in an order by a fixed seed: the first ones to train, the next ones to val.

    Args:
        levels: (N, H, W), 0 to 1.
        labels: of N pictures.
        sizes: pictures of each class in train and in val; the others go to test.
    """
    chosen: dict[str, list[int]] = {part: [] for part in PARTS}
    for place, label in enumerate(dict.fromkeys(sorted(labels))):
        members = np.flatnonzero(np.asarray(labels) == label)
        order = np.random.default_rng((0, place)).permutation(members)
        for part, own in zip(PARTS, np.split(order, np.cumsum(sizes)), strict=True):
            chosen[part] += own.tolist()
    for part, indices in chosen.items():
        images = np.stack([_enlarge(levels[index]) for index in indices])
        write_class_images(images, [labels[index] for index in indices], target / part)


def _enlarge(levels: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))


PACKAGED = {
    "digits": PackagedData(
        "CC BY 4.0; Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998", _write_digits
    ),
    "faces": PackagedData(
        "none stated; a part of Labeled Faces in the Wild, cite Huang et al., UMass 07-49, 2007", _write_faces
    ),
}
