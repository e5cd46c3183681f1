"""How a decoded picture becomes the square that a classifier sees: evaluation, augmentation, contrastive views, mixing.

Steps are torchvision's, on Pillow pictures: Pillow's resampling is antialiased and the same on every machine, and all
draws come from torch's CPU generator alone, so that one seed (`seeded`) decides a picture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samtune.errors import ConfigError, DataError, unknown_name
from samtune.types import Interpolation, LabelledBatch, Mix, Resize

Augment = Literal["none", "light", "strong", "contrastive"]

MARGIN = 256 / 224  # "crop": the shorter side becomes 256 where the model sees 224
MAX_RATIO = 100  # a longer picture would take gigabytes once its shorter side is scaled up
GREY = (124, 116, 104)  # ImageNet's mean colour, for what a turn or an erased box leaves empty


@dataclass(frozen=True)
class View:
    """The two stages of a view.

    Attributes:
        fixed: picture to picture, the same every time: what a cache keeps.
        drawn: that picture to (3, S, S) uint8 RGB; draws from torch's CPU generator.
    """

    fixed: Callable[[Image.Image], Image.Image]
    drawn: Callable[[Image.Image], Tensor]


def build_view(
    augment: Augment, *, image_size: int, resize: Resize = "squash", interpolation: Interpolation = "bicubic"
) -> View:
    """Builds a view by name.

    Args:
        augment: "none": the evaluation view. "light": a horizontal flip; with "crop" the crop is random too (VPT and
            SSF on FGVC). "strong": random resized crop, flip, RandAugment, random erasing (the ImageNet recipe of timm
            and SSF). "contrastive": a view of SimCLR and of supervised contrastive learning (Khosla et al. 2020).
            VTAB-1k trains with "none": some of its tasks tell left from right.
        image_size: side S in pixels of the result.
        resize: "squash" scales straight to S x S; "crop" scales the shorter side to S * 256 / 224 and takes the S x S
            in the middle. "strong" and "contrastive" crop the original and use neither.

    Raises:
        ConfigError: an unknown name.
    """
    from torchvision.transforms import InterpolationMode, v2

    for kind, name, known in (("augmentation", augment, get_args(Augment)), ("resize", resize, get_args(Resize))):
        if name not in known:
            raise ConfigError(unknown_name(kind, name, known))
    kernel, squash = InterpolationMode(interpolation), resize == "squash"
    scaled: Any = (image_size, image_size) if squash else (round(image_size * MARGIN),)  # the shorter side
    scale = v2.Resize(scaled, interpolation=kernel, antialias=True)
    flip, tensor = v2.RandomHorizontalFlip(), v2.PILToTensor()
    if augment == "none":
        return View(scale if squash else v2.Compose([scale, v2.CenterCrop(image_size)]), tensor)
    if augment == "light":
        return View(scale, v2.Compose([flip, tensor] if squash else [v2.RandomCrop(image_size), flip, tensor]))
    if augment == "strong":
        steps = [
            v2.RandomResizedCrop(image_size, scale=(0.08, 1.0), interpolation=kernel),
            flip,
            # 9 is of 10, as timm counts (`rand-m9`); torchvision's 31 levels would make it a third of that
            v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=11, interpolation=kernel, fill=GREY),
            tensor,
            v2.RandomErasing(p=0.25, value=GREY),
        ]
    else:
        steps = [
            v2.RandomResizedCrop(image_size, scale=(0.2, 1.0), interpolation=kernel),
            flip,
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            tensor,
        ]
    return View(v2.Identity(), v2.Compose(steps))


def check_shape(width: int, height: int, path: str | Path) -> None:
    """Refuses a picture (its sides in pixels) that is too long for a square.

    Raises:
        DataError: one side is more than `MAX_RATIO` times the other.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise DataError(
            f"{path}: {width} x {height} pixels, one side more than {MAX_RATIO} times the other; "
            "cut the picture, or leave it out"
        )


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Makes what torch draws on the CPU inside the block depend on `numbers` (0 or more) only, and nothing outside."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators too
        yield


def mixer(*, mixup: float, cutmix: float, classes: int, seed: int) -> Mix | None:
    """Returns what mixes each image of a batch with its neighbour; where both are on, one of them is drawn per batch.

    Args:
        mixup: parameter of the Beta distribution of MixUp's share (Zhang et al., ICLR 2018), 0 = off.
        cutmix: the same of CutMix's share of the area (Yun et al., ICCV 2019), 0 = off.
        seed: with the step, all that the draws depend on.

    Returns:
        A function that gives float32 images in 0..255 and (B, classes) float32 targets, the batch's labels unchanged;
        a batch of one image keeps its pixels. None where both are off.
    """
    from torchvision.transforms import v2

    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    steps = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
    if not steps:
        return None
    transform = v2.RandomChoice(steps)

    def mix(batch: LabelledBatch, step: int) -> LabelledBatch:
        if len(batch) == 1:
            return replace(batch, targets=F.one_hot(batch.labels, classes).float())
        with seeded(seed, step):
            images, targets = transform(batch.images.float(), batch.labels)
        return replace(batch, images=images, targets=targets)

    return mix
