"""How do pictures and their targets come into the input frame: scaled, augmented, padded to a batch?"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samtune.base.environment import set_defaults
from samtune.types import IGNORE, Batch, PixelArray, Prompts, Sample, Size, TargetArray, Tiles

ON_OBJECT = 0.8
"""Share of the crops of training that are drawn around an object."""


def train_augmentation(image_size: int, *, turns: bool, outside: int = 0, channels: int = 3) -> Any:
    """Returns an `albumentations.Compose` for `augmented`.

    The affine and colour changes are kept mild. Images are shifted by at most a sixteenth of `image_size`, their
    longer side in pixels.

    Args:
        turns: with all eight flips and quarter turns, as polyps and cells have no up; else left and right change only.
        outside: what a mask gets where the picture moved away.
        channels: of the images. What is not RGB has no hue: its channels become brighter and darker each for itself,
            and brightness and contrast of all change together.
    """
    set_defaults()
    import albumentations as A  # type: ignore[import-untyped]
    import cv2

    shift, mild = (-(image_size // 16), image_size // 16), (0.85, 1.15)
    flips = [A.HorizontalFlip(p=0.5), *([A.VerticalFlip(p=0.5), A.RandomRotate90(p=0.5)] if turns else [])]
    affine = {"scale": (0.85, 1.2), "rotate": (-15, 15), "translate_px": {"x": shift, "y": shift}}
    moves = A.Affine(**affine, border_mode=cv2.BORDER_CONSTANT, fill_mask=outside, p=0.5)
    if channels == 3:
        colours = [A.ColorJitter(brightness=mild, contrast=mild, saturation=mild, hue=(-0.02, 0.02), p=0.5)]
    else:
        each = A.MultiplicativeNoise(multiplier=mild, per_channel=True, p=0.5)
        colours = [each, A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5)]
    return A.Compose([*flips, moves, *colours])


def augmented(
    augmentation: Any, image: PixelArray, mask: np.ndarray[Any, Any], *, seed: int
) -> tuple[PixelArray, np.ndarray[Any, Any]]:
    """Changes an (h, w, C) image and its (h, w) mask, of uint8, or of int32 up to 65535, by `seed` only."""
    reseed(augmentation, seed)
    movable = mask if mask.dtype == np.uint8 else mask.astype(np.uint16)  # OpenCV moves none of 32 bits
    if image.dtype == np.uint8:
        changed = augmentation(image=image, mask=movable)
        return changed["image"], changed["mask"].astype(mask.dtype, copy=False)
    changed = augmentation(image=image / np.float32(255), mask=movable)  # albumentations takes floats of 0 to 1
    return changed["image"] * np.float32(255), changed["mask"].astype(mask.dtype, copy=False)


def reseed(augmentation: Any, seed: int) -> None:
    """Makes the next call of an augmentation depend on `seed` only.

    Without it, albumentations repeats itself in every worker and epoch. Its own `set_random_seed` gives each step a
    generator of the same seed, so that either every flip, turn and jitter happens or none; here they share one.
    """
    augmentation.set_random_state(np.random.default_rng(seed), random.Random(seed))


@dataclass(frozen=True)
class Collate:
    """Pads samples at the right and bottom to a square of `image_size` pixels (S), and stacks them.

    Padding is background in masks, no object in maps of objects, and `IGNORE` in maps of classes.
    """

    image_size: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Returns the batch of at least one sample; a sample without a prompt that another has gets NaN for it."""
        side = self.image_size
        first = samples[0].image
        images = torch.zeros(len(samples), len(first), side, side, dtype=first.dtype)
        kind = samples[0].mask.dtype
        masks = torch.full((len(samples), 1, side, side), IGNORE if kind == torch.uint8 else 0, dtype=kind)
        for i, sample in enumerate(samples):
            height, width = sample.mask.shape
            images[i, :, :height, :width] = sample.image
            masks[i, 0, :height, :width] = sample.mask
        sizes = tuple((int(s.mask.shape[0]), int(s.mask.shape[1])) for s in samples)
        names, truths = tuple(s.name for s in samples), tuple(s.truth for s in samples)
        prompts = [
            _stacked([s.box_input for s in samples], math.nan),
            _stacked([s.points_input for s in samples], math.nan),
            _stacked([s.labels for s in samples], -1),
        ]
        given = any(column is not None for column in prompts)
        return Batch(images, masks, sizes, names, truths, Prompts(*prompts) if given else None)


@dataclass(frozen=True)
class CollateWhole:
    """Makes a batch of one picture at its own size, which is not copied, for a model that answers it by tiles."""

    tiles: Tiles

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Returns the batch of a single sample without a prompt."""
        (sample,) = samples
        size = (int(sample.truth.shape[0]), int(sample.truth.shape[1]))
        images, masks = sample.image[None], sample.mask[None, None]
        return Batch(images, masks, (size,), (sample.name,), (sample.truth,), tiles=self.tiles)


def _stacked(given: Sequence[Tensor | None], missing: float) -> Tensor | None:
    """Stacks tensors of one shape, of which some may be missing; None where all are."""
    like = next((one for one in given if one is not None), None)
    if like is None:
        return None
    return torch.stack([torch.full_like(like, missing) if one is None else one for one in given])


def crop_place(truth: TargetArray, tiles: Tiles, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draws the rows and columns of a crop of a tile's size, or less where the picture is smaller, from a picture.

    One of `ON_OBJECT` has a random pixel of a random value of the map, other than 0 and `IGNORE`, in its middle half,
    moved into the picture: so rare classes and small objects are as often seen as others. The rest lies anywhere.

    Args:
        truth: (H, W) mask, or map of classes or objects.
    """
    size = (min(truth.shape[0], tiles.size), min(truth.shape[1], tiles.size))
    most = (truth.shape[0] - size[0], truth.shape[1] - size[1])
    starts = [int(rng.integers(limit + 1)) for limit in most]
    if max(most) > 0 and rng.random() < ON_OBJECT:
        counts = np.bincount(truth.ravel())
        counts[0] = 0
        if len(counts) > IGNORE and truth.dtype == np.uint8:
            counts[IGNORE] = 0
        if len(numbers := np.flatnonzero(counts)):
            pixels = np.flatnonzero(truth == rng.choice(numbers))
            middle = np.unravel_index(int(rng.choice(pixels)), truth.shape)
            moved = (int(at - rng.uniform(0.25, 0.75) * side) for at, side in zip(middle, size, strict=True))
            starts = [min(max(start, 0), limit) for start, limit in zip(moved, most, strict=True)]
    return slice(starts[0], starts[0] + size[0]), slice(starts[1], starts[1] + size[1])


def resize_longest(image: PixelArray, size: int, *, least: int = 0) -> PixelArray:
    """Scales an image so that its longer side has `size` pixels, rounded half up like Segment Anything.

    Args:
        least: where the longer side has fewer pixels than this, it is scaled as if it had so many.
    """
    scale = size / max(*image.shape[:2], least)
    height, width = (max(1, int(side * scale + 0.5)) for side in image.shape[:2])
    return cast(PixelArray, resize(image, (height, width)))


def resize(array: Any, size: Size) -> Any:
    """Scales an array to `size`.

    An image, (H, W, C) uint8 or float32, is scaled with Pillow's bilinear filter (antialiased); an (H, W) mask or map,
    of uint8 or int32, by nearest.
    """
    if array.shape[:2] == size:
        return array
    width_height = (size[1], size[0])
    if array.ndim == 3 and (array.dtype != np.uint8 or array.shape[2] != 3):
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(array, 2, 0)]
        return np.stack([np.array(plane.resize(width_height, Image.Resampling.BILINEAR)) for plane in planes], axis=2)
    if array.ndim == 3:
        return np.array(Image.fromarray(array).resize(width_height, Image.Resampling.BILINEAR))
    values = array.astype(np.uint8) if array.dtype == np.bool_ else array
    small = np.array(Image.fromarray(values).resize(width_height, Image.Resampling.NEAREST))
    return small > 0 if array.dtype == np.bool_ else small
