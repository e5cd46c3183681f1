"""Classification samples for training, scoring and evaluation, from a list of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from samtune.data.pictures import read_image
from samtune.tasks.classes.images import LabelledImage
from samtune.tasks.classes.views import Augment, build_view, check_shape, seeded
from samtune.types import Interpolation, LabelledBatch, Resize

ClassItem = tuple[str, Tensor, int]
"""Name, (V, 3, S, S) uint8 RGB with one picture per view, label."""


class ClassDataset(Dataset[ClassItem]):
    """Items of a list of labelled images.

    All randomness of an item comes from (seed, epoch, index, view), so any number of workers gives the same pictures.
    """

    skipped = 0
    """Images without an item; none, as every image has a label."""

    def __init__(
        self,
        images: Sequence[LabelledImage],
        *,
        image_size: int,
        resize: Resize = "squash",
        interpolation: Interpolation = "bicubic",
        augment: Augment = "none",
        views: int = 1,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        """Stores the values; files are read on first use.

        Args:
            images: what to read.
            image_size: side S in pixels of the pictures.
            resize: as for `build_view`.
            interpolation: as for `build_view`.
            augment: as for `build_view`.
            views: pictures of one image, at least 1; they differ where `augment` draws.
            seed: start of all randomness.
            cache: keep pictures in memory as far as every epoch shares them; later epochs decode nothing. An image
                costs 3 bytes per pixel: S x S (at 224 px 147 KiB), with "crop" and "light" the scaled picture (at
                224 px some 260 KiB), with "strong" and "contrastive" the original.
        """
        self.images = list(images)
        self.views = views
        self.seed = seed
        self.epoch = 0
        self._view = build_view(augment, image_size=image_size, resize=resize, interpolation=interpolation)
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ClassItem:
        picture, shown = self._load(index), []
        for view in range(self.views):
            with seeded(self.seed, self.epoch, index, view):
                shown.append(self._view.drawn(picture))
        return self.images[index].name, torch.stack(shown), self.images[index].label

    def set_epoch(self, epoch: int) -> None:
        """Selects the randomness of an epoch; call it before the loader is iterated."""
        self.epoch = epoch

    def fill_cache(self) -> None:
        """Decodes all images now, so that worker processes started later share the pictures."""
        for index in range(len(self)):
            self._load(index)

    def _load(self, index: int) -> Image.Image:
        """Returns the picture after the part of the view that every epoch shares."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        path = self.images[index].image
        pixels = read_image(path)
        check_shape(pixels.shape[1], pixels.shape[0], path)
        picture = self._view.fixed(Image.fromarray(pixels))
        if self._cache is not None:
            self._cache[index] = picture
        return picture


def collate_classes(items: Sequence[ClassItem]) -> LabelledBatch:
    """Makes a batch of at least one item, all with V views.

    Returns:
        N * V images: first the first view of every item, then the second, with their labels; with more than one view
        the names end in `~1`, `~2`, ...
    """
    names, pictures, labels = zip(*items, strict=True)
    views = len(pictures[0])
    images = torch.stack(pictures, dim=1).flatten(0, 1)  # (V, N, 3, S, S) -> (V * N, 3, S, S)
    shown = [f"{name}~{view + 1}" for view in range(views) for name in names] if views > 1 else names
    return LabelledBatch(images, torch.tensor(labels).repeat(views), tuple(shown))
