"""The four loaders of a run: score, train, val, test."""

import logging
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from samtune.base.launch import end_with_parent
from samtune.base.signals import ASKING
from samtune.data.frames import CollateWhole
from samtune.data.splits import Splits
from samtune.types import Tiles

_log = logging.getLogger(__name__)

T = TypeVar("T")
ItemT = TypeVar("ItemT")
LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class LoaderOptions:
    """How a run reads its images.

    Attributes:
        batch: items per batch of train, val and test, as `score_batch` of `score`; a smaller last batch is not dropped.
        score_images: number of training images for scoring; None = all.
        seed: start of all randomness: order, augmentation, choice of score images.
        workers: processes that decode; batches don't depend on it.
        cache: keep the decoded images of train and val, which are read every epoch, in memory.
        tiles: of score and train give crops of this size, of val and test whole pictures; None for pictures in the
            input frame.
    """

    batch: int
    score_batch: int
    score_images: int | None = None
    seed: int = 0
    workers: int = 0
    cache: bool = False
    tiles: Tiles | None = None

    def scored(self, train: Sequence[T]) -> list[T]:
        """Returns the training images that parameters are scored on, in the drawn order."""
        order = np.random.default_rng((self.seed, 1)).permutation(len(train))
        return [train[index] for index in order[: self.score_images]]


@dataclass(frozen=True)
class Loaders:
    """Loaders of batches, and where their images come from; val and test are in order of the split.

    Attributes:
        score: training images only, fixed order: what parameters are scored on.
        train: a new permutation and new augmentations per epoch.
        val: None where there is nothing to choose by.
        test: for the reported evaluation only, never for a choice.
    """

    score: DataLoader[Any]
    train: DataLoader[Any]
    val: DataLoader[Any] | None
    test: DataLoader[Any]
    splits: Splits[Any]

    def skipped(self, name: str) -> int:
        """Returns the number of images of a part that have no item, as they show nothing to prompt for."""
        loader = getattr(self, name)
        return 0 if loader is None else int(loader.dataset.skipped)

    def part(self, name: str) -> DataLoader[Any]:
        """Returns the loader of "val" or "test", which must be there."""
        loader = self.val if name == "val" else self.test
        assert loader is not None
        return loader

    def example(self) -> Any:
        """Returns a batch as a model takes it: the first of val, of score where that has none, or whole pictures."""
        if self.val is None or isinstance(self.val.collate_fn, CollateWhole):
            return next(iter(self.score))
        return next(iter(self.val))

    def divide(self, part_of: Callable[[int], slice]) -> None:
        """Lets `train` give only a part of each batch, by the number of its items; None where that is empty."""
        self.train.batch_sampler.part_of = part_of  # type: ignore[union-attr]

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Selects order and augmentation of `train`, without its first `skip` batches; call it before each epoch."""
        self.train.batch_sampler.set_epoch(epoch, skip=skip)  # type: ignore[union-attr]
        self.train.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


class EpochDataset(Dataset[ItemT], Generic[ItemT, LoadedT]):
    """Items of a list of files, whose randomness comes from (seed, epoch, index): workers change nothing."""

    def __init__(self, files: int, *, seed: int, cache: bool) -> None:
        """Reads nothing yet; with `cache`, what is loaded stays in memory, and later epochs decode nothing."""
        self.files, self.seed, self.epoch = files, seed, 0
        self._cache: dict[int, LoadedT] | None = {} if cache else None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of items."""

    @property
    def skipped(self) -> int:
        """Number of files without an item."""
        return 0

    @abstractmethod
    def decode(self, which: int) -> LoadedT:
        """Reads one file, up to what every epoch shares."""

    def load(self, which: int) -> LoadedT:
        """Returns `decode` of a file, from memory if that is kept."""
        if self._cache is None:
            return self.decode(which)
        if which not in self._cache:
            self._cache[which] = self.decode(which)
        return self._cache[which]

    def fill_cache(self) -> None:
        """Decodes all files now, so that worker processes started later share the arrays."""
        for which in range(self.files):
            self.load(which)

    def set_epoch(self, epoch: int) -> None:
        """Selects the randomness of an epoch; call it before the loader is iterated."""
        self.epoch = epoch


class EpochBatches(Sampler[list[int]]):
    """Batches of a permutation of the items that depends on (seed, epoch) only; of each, the part of this process."""

    def __init__(self, size: int, batch: int, *, seed: int) -> None:
        """Starts at epoch 0, with whole batches; the last may be smaller."""
        self.size, self.batch, self.seed, self.epoch, self.skip = size, batch, seed, 0, 0
        self.part_of: Callable[[int], slice] = slice

    def __len__(self) -> int:
        return -(-self.size // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        for start in range(self.skip * self.batch, self.size, self.batch):
            whole = order[start : start + self.batch]
            yield whole[self.part_of(len(whole))]

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Selects the permutation, to be read without its first `skip` batches: an epoch that goes on."""
        self.epoch, self.skip = epoch, skip


def build_loaders(
    splits: Splits[Any],
    options: LoaderOptions,
    collate: Callable[[list[ItemT]], Any],
    *,
    score: EpochDataset[ItemT, Any],
    train: EpochDataset[ItemT, Any],
    val: EpochDataset[ItemT, Any] | None,
    test: EpochDataset[ItemT, Any],
) -> Loaders:
    """Makes loaders of datasets, and logs the notes on the split; with tiles, val and test give pictures one by one."""
    for note in splits.notes:
        _log.warning("%s", note)
    if options.cache and options.workers:
        for dataset in (train, val):
            if dataset is not None:
                dataset.fill_cache()  # before the workers fork: they share it
    # Workers end with each epoch: ones that stay would keep a copy of the dataset, and its epoch.
    batches = EpochBatches(len(train), options.batch, seed=options.seed)
    loader_of: Any = partial(DataLoader, num_workers=options.workers, collate_fn=collate, worker_init_fn=_start_worker)
    measured: dict[str, Any] = {"batch_size": options.batch}
    if options.tiles is not None:
        measured = {"batch_size": 1, "collate_fn": CollateWhole(options.tiles)}
    return Loaders(
        score=loader_of(score, batch_size=options.score_batch),
        train=loader_of(train, batch_sampler=batches, collate_fn=partial(_collated, collate)),
        val=None if val is None else loader_of(val, **measured),
        test=loader_of(test, **measured),
        splits=splits,
    )


def _collated(collate: Callable[[list[ItemT]], Any], items: list[ItemT]) -> Any:
    """Returns the batch, or None of no items: this process has no part of a small last batch."""
    return collate(items) if items else None


def _start_worker(worker: int) -> None:
    """Lets a loader process end with its parent, however that ends, and leaves signals to it."""
    cv2.setNumThreads(0)  # OpenCV's thread pool can hang in a fork
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
