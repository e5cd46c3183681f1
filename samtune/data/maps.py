"""From pairs of image and map, of classes or of objects, to augmented `Sample`s, and the loaders of a run."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels
from samtune.data.channels.tiff import picture_size
from samtune.data.frames import Collate, CollateWhole, augmented, crop_place, resize, resize_longest, train_augmentation
from samtune.data.loaders import EpochDataset, LoaderOptions, Loaders, build_loaders
from samtune.data.pairs import Pair
from samtune.data.splits import Splits
from samtune.errors import DataError
from samtune.types import Batch, PixelArray, Sample, TargetArray, Tiles

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

    @property
    def collate(self) -> Callable[[Sequence[Sample]], Batch]:
        """What makes batches of the samples."""
        return Collate(self.image_size)

    def __getitem__(self, index: int) -> Sample:
        which, image, truth = self._view(index)
        target = resize(truth, image.shape[:2])
        if self._transform is not None:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            image, target = augmented(self._transform, image, target, seed=int(rng.integers(2**31)))
            truth = target  # an augmented picture has no original frame: its truth is what is trained on
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (C, h, w)
        return Sample(self.pairs[which].name, pixels, torch.from_numpy(np.ascontiguousarray(target)), truth)

    def _view(self, index: int) -> tuple[int, PixelArray, TargetArray]:
        """Returns which picture an item is of, what a model sees of it, and its map."""
        return index, *self.load(index)

    def decode(self, which: int) -> tuple[PixelArray, TargetArray]:
        """Returns the image in the input frame, without padding, and the map at the original size."""
        image, truth = self._read(which)
        return resize_longest(image, self.image_size), truth

    def _read(self, which: int) -> tuple[PixelArray, TargetArray]:
        pair = self.pairs[which]
        image, truth = read_pixels(pair.image, self.pixels), self.read(pair.mask)
        if image.shape[:2] != truth.shape:
            wanted, found = (f"{a.shape[1]} x {a.shape[0]}" for a in (image, truth))
            raise DataError(f"{pair.mask}: mask of {found} pixels, image of {wanted}; both must be equal")
        return image, truth


class WholeMaps(MapDataset):
    """Pictures with their maps at their own size, for a model that answers them by tiles; see `MapDataset`."""

    def __init__(self, pairs: Sequence[Pair], read: Read, *, tiles: Tiles, **how: Any) -> None:
        super().__init__(pairs, read, image_size=tiles.side, **how)
        self.tiles = tiles

    @property
    def collate(self) -> Callable[[Sequence[Sample]], Batch]:
        return CollateWhole(self.tiles)

    def decode(self, which: int) -> tuple[PixelArray, TargetArray]:
        """Returns the image and the map at the original size."""
        return self._read(which)


class CropMaps(WholeMaps):
    """Crops of a tile's size from pictures with their maps, in the input frame; see `crop_place` and `crop_items`."""

    def __init__(self, pairs: Sequence[Pair], read: Read, *, tiles: Tiles, **how: Any) -> None:
        super().__init__(pairs, read, tiles=tiles, **how)
        self._items = crop_items(self.pairs, tiles)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def collate(self) -> Callable[[Sequence[Sample]], Batch]:
        return Collate(self.image_size)

    def _view(self, index: int) -> tuple[int, PixelArray, TargetArray]:
        which = self._items[index]
        image, truth = self.load(which)
        place = crop_place(truth, self.tiles, np.random.default_rng((self.seed, self.epoch, index, 1)))
        return which, resize_longest(image[place], self.image_size, least=self.tiles.size), truth[place]


def crop_items(pairs: Sequence[Pair], tiles: Tiles) -> list[int]:
    """Returns which picture each crop of an epoch is of: of each as many as tiles have its area, but one at least."""
    areas = [width * height for width, height in (picture_size(pair.image) for pair in pairs)]
    counts = (max(1, round(area / tiles.size**2)) for area in areas)
    return [which for which, count in enumerate(counts) for _ in range(count)]


def map_dataset(tiles: Tiles | None, image_size: int, *, crops: bool = False) -> Callable[..., MapDataset]:
    """Returns what makes a dataset of pairs: of pictures in the input frame, or with tiles whole ones, or crops."""
    if tiles is None:
        return partial(MapDataset, image_size=image_size)
    return partial(CropMaps if crops else WholeMaps, tiles=tiles)


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
    how: Any = {"read": read, "outside": outside, "seed": options.seed, "pixels": pixels}
    crops, whole = (map_dataset(options.tiles, image_size, crops=cut) for cut in (True, False))
    score = crops(sorted(options.scored(splits.train), key=lambda pair: pair.name), **how)
    train = crops(splits.train, augment=augment, cache=options.cache, **how)
    val = whole(splits.val, cache=options.cache, **how)
    test = whole(splits.test, **how)
    return build_loaders(splits, options, train.collate, score=score, train=train, val=val, test=test)
