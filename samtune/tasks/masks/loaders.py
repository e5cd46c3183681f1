"""The loaders of a segmentation run: score, train, val, test."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import DataLoader

from samtune.data.loaders import EpochSampler, Loaders
from samtune.errors import DataError
from samtune.tasks.masks.dataset import Collate, SegmentationDataset
from samtune.tasks.masks.splits import SplitMode, resolve_split
from samtune.tasks.masks.verify import check_pairs
from samtune.types import PromptMode

_log = logging.getLogger(__name__)


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
