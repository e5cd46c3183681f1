"""The loaders of a classification run: score, train, val, test."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
from torch.utils.data import DataLoader

from samtune.data.loaders import EpochSampler, Loaders
from samtune.errors import DataError
from samtune.tasks.classes.dataset import ClassDataset, collate_classes
from samtune.tasks.classes.images import ClassSplits
from samtune.tasks.classes.views import Augment
from samtune.types import Interpolation, Resize

_log = logging.getLogger(__name__)


def build_class_data(
    splits: ClassSplits,
    *,
    image_size: int,
    batch: int,
    resize: Resize = "squash",
    augment: Augment = "none",
    interpolation: Interpolation = "bicubic",
    seed: int = 0,
    workers: int = 0,
    cache: bool = False,
    score_images: int | None = None,
    score_batch: int = 32,
    score_views: bool = False,
) -> Loaders:
    """Builds the loaders of `LabelledBatch`es, and logs the notes on the split.

    Args:
        splits: the images of each part; val may be empty.
        image_size: side S in pixels of the pictures.
        batch: images per batch of train, val and test; the last batch may be smaller, none is dropped.
        resize: how pictures become squares, see `build_view`.
        augment: of train, see `build_view`.
        interpolation: filter of every scaling.
        seed: start of all randomness: order, augmentation, choice of score images.
        workers: processes that decode; batches don't depend on it.
        cache: keep the pictures of train and val, which are read every epoch, in memory; see `ClassDataset`.
        score_images: number of training images for scoring; None = all.
        score_batch: images per batch of `score`.
        score_views: `score` shows two random views of each image, as the contrastive loss wants, so that batches have
            2 * `score_batch` pictures; else the evaluation view.

    Returns:
        The loaders; `val` is None where the split has no validation images.

    Raises:
        DataError: no training or no test image.
    """
    for part, images in (("train", splits.train), ("test", splits.test)):
        if not images:
            raise DataError(f"the {part} part has no image; classification needs train and test images")
    for note in splits.notes:
        _log.warning("%s", note)
    dataset_of = partial(ClassDataset, image_size=image_size, resize=resize, interpolation=interpolation, seed=seed)
    # in the drawn order: sorted by name, a batch of a class folder would hold one class only
    chosen = np.random.default_rng((seed, 1)).permutation(len(splits.train))[:score_images]
    scored = [splits.train[i] for i in chosen]
    score = dataset_of(scored, augment="contrastive", views=2) if score_views else dataset_of(scored)
    train = dataset_of(splits.train, augment=augment, cache=cache)
    val = dataset_of(splits.val, cache=cache)
    if cache and workers:
        for dataset in (train, val):
            dataset.fill_cache()  # before the workers fork: they share it
    # Workers end with each epoch: ones that stay would keep a copy of the dataset, and its epoch.
    loader_of = partial(DataLoader, num_workers=workers, collate_fn=collate_classes)
    return Loaders(
        score=loader_of(score, batch_size=score_batch),
        train=loader_of(train, batch_size=batch, sampler=EpochSampler(len(train), seed=seed)),
        val=loader_of(val, batch_size=batch) if len(val) else None,
        test=loader_of(dataset_of(splits.test), batch_size=batch),
        splits=splits,
    )
