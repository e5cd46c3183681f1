"""From pairs of image and map, of classes or of objects, to augmented `Sample`s, and the loaders of a run."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.frames import Collate, augmented, resize, resize_longest, train_augmentation
from samtune.data.loaders import EpochDataset, LoaderOptions, Loaders, build_loaders
from samtune.data.pairs import Pair
from samtune.data.splits import Splits
from samtune.errors import DataError
from samtune.types import PixelArray, Sample, TargetArray

Augment = Literal["none", "upright", "turns"]
Read = Callable[[Path], TargetArray]
"""Decodes the (H, W) map of a file, of uint8 or int32."""


class MapDataset(EpochDataset[Sample, tuple[PixelArray, TargetArray]]):
    """Samples of a list of pairs, one per image; files are read on first use.

    Args:
        read: decodes a map.
        outside: what a map has where an augmented picture moved away.
        image_size: longer side in pixels of the input frame.
        augment: random changes: mild ones and a flip, or also quarter turns and upside down.
        cache: keep the scaled arrays in memory.
        pixels: what the values of files become.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        read: Read,
        *,
        outside: int,
        image_size: int,
        augment: Augment = "none",
        seed: int = 0,
        cache: bool = False,
        pixels: Pixels = RGB,
    ) -> None:
        super().__init__(len(pairs), seed=seed, cache=cache)
        self.pairs, self.read, self.image_size, self.pixels = list(pairs), read, image_size, pixels
        self._transform: Any = None
        if augment != "none":
            how: Any = {"turns": augment == "turns", "outside": outside, "channels": pixels.channels}
            self._transform = train_augmentation(image_size, **how)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image, truth = self.load(index)
        target = resize(truth, image.shape[:2])
        if self._transform is not None:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            image, target = augmented(self._transform, image, target, seed=int(rng.integers(2**31)))
            truth = target  # an augmented picture has no original frame: its truth is what is trained on
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (C, h, w)
        return Sample(self.pairs[index].name, pixels, torch.from_numpy(np.ascontiguousarray(target)), truth)

    def decode(self, which: int) -> tuple[PixelArray, TargetArray]:
        """Returns the image in the input frame, without padding, and the map at the original size."""
        pair = self.pairs[which]
        image, truth = read_pixels(pair.image, self.pixels), self.read(pair.mask)
        if image.shape[:2] != truth.shape:
            wanted, found = (f"{a.shape[1]} x {a.shape[0]}" for a in (image, truth))
            raise DataError(f"{pair.mask}: mask of {found} pixels, image of {wanted}; both must be equal")
        return resize_longest(image, self.image_size), truth


def build_map_data(
    splits: Splits[Pair],
    options: LoaderOptions,
    read: Read,
    *,
    outside: int,
    image_size: int,
    augment: Augment,
    pixels: Pixels = RGB,
) -> Loaders:
    """Builds the loaders of `Batch`es, and logs the notes on the split.

    Args:
        read, outside: see `MapDataset`.
        image_size: side S in pixels of the input frame.
        augment: of training images.
        pixels: what the values of files become.
    """
    dataset_of = partial(
        MapDataset, read=read, outside=outside, image_size=image_size, seed=options.seed, pixels=pixels
    )
    score = dataset_of(sorted(options.scored(splits.train), key=lambda pair: pair.name))
    train = dataset_of(splits.train, augment=augment, cache=options.cache)
    val = dataset_of(splits.val, cache=options.cache)
    test = dataset_of(splits.test)
    return build_loaders(splits, options, Collate(image_size), score=score, train=train, val=val, test=test)
