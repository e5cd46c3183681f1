"""The four loaders of a run: score, train, val, test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Sampler

from samtune.data.class_types import ClassSplits
from samtune.data.segmentation import Collate, SegmentationDataset
from samtune.data.splits import SplitMode, Splits, resolve_split
from samtune.data.verify import check_pairs
from samtune.errors import DataError
from samtune.types import PromptMode

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


def build_data(
    folder: str | Path,
    *,
    image_size: int,
    batch: int,
    split: SplitMode = "auto",
    prompt: PromptMode = "none",
    seed: int = 0,
    workers: int = 0,
    augment: bool = True,
    cache: bool = False,
    score_images: int | None = None,
    score_batch: int = 8,
    score_prompt: PromptMode = "none",
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
) -> Loaders:
    """Finds, checks and splits the pairs of a folder and builds the loaders.

    Args:
        folder: data folder, see `resolve_split`.
        image_size: side S in pixels of the input frame.
        batch: items per batch of train, val and test; the last batch may be smaller, none is dropped.
        split: how the folder is split, see `resolve_split`.
        prompt: prompt mode of train, val and test.
        seed: start of all randomness: split, order, augmentation, choice of score images.
        workers: processes that decode; batches don't depend on it.
        augment: whether training images are augmented.
        cache: keep the decoded images of train and val, which are read every epoch, in memory.
        score_images: number of training images for scoring; None = all.
        score_batch: items per batch of `score`.
        score_prompt: prompt mode of `score`; the contrastive loss wants the whole foreground ("none").
        train: folder or list of names for this part instead of what `split` finds.
        val: as `train`.
        test: as `train`.

    Returns:
        The loaders.

    Raises:
        DataError: an unusable folder or split, or bad files, all listed.
    """
    splits = resolve_split(folder, split=split, seed=seed, train=train, val=val, test=test)
    report = check_pairs([*splits.train, *splits.val, *splits.test])
    for line in (*splits.notes, *report.summary()):
        _log.warning(line)
    chosen = np.random.default_rng((seed, 1)).permutation(len(splits.train))[:score_images]
    score_pairs = [splits.train[i] for i in sorted(chosen)]
    dataset_of = partial(SegmentationDataset, image_size=image_size, seed=seed)
    datasets = {
        "score": dataset_of(score_pairs, prompt=score_prompt),
        "train": dataset_of(splits.train, prompt=prompt, augment=augment, cache=cache),
        "val": dataset_of(splits.val, prompt=prompt, cache=cache),
        "test": dataset_of(splits.test, prompt=prompt),
    }
    if not len(datasets["score"]) or not len(datasets["train"]):
        raise DataError(f"{folder}: no training image has a foreground to prompt for")
    if cache and workers:
        for name in ("train", "val"):
            datasets[name].fill_cache()  # before the workers fork: they share it
    loader_of = partial(DataLoader, num_workers=workers, collate_fn=Collate(image_size), worker_init_fn=_one_thread)
    order = EpochSampler(len(datasets["train"]), seed=seed)
    return Loaders(
        score=loader_of(datasets["score"], batch_size=score_batch),
        train=loader_of(datasets["train"], batch_size=batch, sampler=order),
        val=loader_of(datasets["val"], batch_size=batch),
        test=loader_of(datasets["test"], batch_size=batch),
        splits=splits,
    )


def _one_thread(worker: int) -> None:
    """Keeps OpenCV's thread pool out of forked workers, where it can hang."""
    cv2.setNumThreads(0)
