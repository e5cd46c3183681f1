"""Classification samples for training, scoring and evaluation, from a list of labelled images, and a run's loaders."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from samtune.data.loaders import EpochDataset, LoaderOptions, Loaders, build_loaders
from samtune.data.pictures import read_image
from samtune.errors import DataError
from samtune.tasks.classes.splits import ClassSplits, LabelledImage
from samtune.tasks.classes.views import Augment, View, check_shape, seeded
from samtune.types import LabelledBatch

ClassItem = tuple[str, Tensor, int]
"""Name, (V, 3, S, S) uint8 RGB with one picture per view, label."""


class ClassDataset(EpochDataset[ClassItem, Image.Image]):
    """Items of a list of labelled images, shown by a view.

    All randomness of an item comes from (seed, epoch, index, view), so any number of workers gives the same pictures.

    Args:
        views: pictures of one image, at least 1; they differ where `view` draws.
        cache: keep the pictures as far as every epoch shares them. An image costs 3 bytes per pixel: S x S (at 224 px
            147 KiB), with "crop" and "light" the scaled picture (at 224 px some 260 KiB), with "strong" and
            "contrastive" the original.
    """

    def __init__(
        self, images: Sequence[LabelledImage], view: View, *, views: int = 1, seed: int = 0, cache: bool = False
    ) -> None:
        super().__init__(len(images), seed=seed, cache=cache)
        self.images, self.views, self._view = list(images), views, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ClassItem:
        picture, shown = self.load(index), []
        for view in range(self.views):
            with seeded(self.seed, self.epoch, index, view):
                shown.append(self._view.drawn(picture))
        return self.images[index].name, torch.stack(shown), self.images[index].label

    def decode(self, which: int) -> Image.Image:
        """Returns the picture after the part of the view that every epoch shares."""
        path = self.images[which].image
        pixels = read_image(path)
        check_shape(pixels.shape[1], pixels.shape[0], path)
        return self._view.fixed(Image.fromarray(pixels))


def collate_classes(items: Sequence[ClassItem]) -> LabelledBatch:
    """Makes a batch of N items with V views: N * V images, first the first view of every item, then the second.

    With more than one view the names end in `~1`, `~2`, ...
    """
    names, pictures, labels = zip(*items, strict=True)
    views = len(pictures[0])
    images = torch.stack(pictures, dim=1).flatten(0, 1)  # (V, N, 3, S, S) -> (V * N, 3, S, S)
    shown = [f"{name}~{view + 1}" for view in range(views) for name in names] if views > 1 else names
    return LabelledBatch(images, torch.tensor(labels).repeat(views), tuple(shown))


def build_class_data(
    splits: ClassSplits,
    options: LoaderOptions,
    view_of: Callable[[Augment], View],
    *,
    augment: Augment = "none",
    score_views: bool = False,
) -> Loaders:
    """Builds the loaders of `LabelledBatch`es, and logs the notes on the split; an empty val has no loader.

    Args:
        view_of: `build_view` of the model's input.
        score_views: `score` shows two random views of each image, as the contrastive loss wants, so that batches have
            2 * `score_batch` pictures; else the evaluation view.

    Raises:
        DataError: no training or no test image.
    """
    for part, images in (("train", splits.train), ("test", splits.test)):
        if not images:
            raise DataError(f"the {part} part has no image; classification needs train and test images")
    plain, cache = view_of("none"), options.cache
    dataset = partial(ClassDataset, seed=options.seed)
    scored = options.scored(splits.train)  # as drawn: sorted by name, a batch of class folders would hold one class
    return build_loaders(
        splits,
        options,
        collate_classes,
        score=dataset(scored, view_of("contrastive"), views=2) if score_views else dataset(scored, plain),
        train=dataset(splits.train, view_of(augment), cache=cache),
        val=dataset(splits.val, plain, cache=cache) if splits.val else None,
        test=dataset(splits.test, plain),
    )
