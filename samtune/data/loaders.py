"""The four loaders of a run: score, train, val, test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from samtune.tasks.classes.images import ClassSplits
from samtune.tasks.masks.splits import Splits

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """Loaders of `Batch`es or `LabelledBatch`es, and where their images come from.

    Attributes:
        score: training images only, fixed order: what parameters are scored on.
        train: a new permutation and new augmentations per epoch.
        val: in order of the split; None where it has no validation images, which a segmentation split always has.
        test: in order of the split; for the reported evaluation only, never for a choice.
        splits: the images of each part, with notes for the user.
    """

    score: DataLoader[Any]
    train: DataLoader[Any]
    val: DataLoader[Any] | None
    test: DataLoader[Any]
    splits: Splits | ClassSplits

    def skipped(self, name: str) -> int:
        """Returns the number of images of a part that have no item, as they show nothing to prompt for."""
        loader = getattr(self, name)
        return 0 if loader is None else int(loader.dataset.skipped)

    def part(self, name: str) -> DataLoader[Any]:
        """Returns the loader of "val" or "test", which must be there."""
        loader = {"val": self.val, "test": self.test}[name]
        assert loader is not None
        return loader

    def set_epoch(self, epoch: int) -> None:
        """Selects order and augmentation of `train`; call it before each epoch."""
        for part in (self.train.sampler, self.train.dataset):
            part.set_epoch(epoch)  # type: ignore[union-attr]


class EpochSampler(Sampler[int]):
    """A permutation of the items that depends on (seed, epoch) only."""

    def __init__(self, size: int, *, seed: int) -> None:
        """Stores the values.

        Args:
            size: number of items.
            seed: start of all randomness.
        """
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Selects the permutation."""
        self.epoch = epoch
