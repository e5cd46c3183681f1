"""How a decoded picture becomes the square that a classifier sees: evaluation, augmentation, contrastive views.

Steps are torchvision's, on Pillow pictures: Pillow's resampling is antialiased and the same on every machine, and all
draws come from torch's CPU generator alone, so that one seed (`seeded`) decides a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samtune.errors import ConfigError, DataError, unknown_name
from samtune.types import Interpolation, Resize

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
        interpolation: Pillow's filter, antialiased.

    Raises:
        ConfigError: an unknown name.
    """
    from torchvision.transforms import InterpolationMode

    for kind, name, known in (("augmentation", augment, _VIEWS), ("resize", resize, ("squash", "crop"))):
        if name not in known:
            raise ConfigError(unknown_name(kind, name, known))
    return _VIEWS[augment](image_size, resize, InterpolationMode(interpolation))


def check_shape(width: int, height: int, path: str | Path) -> None:
    """Refuses a picture that is too long for a square.

    Args:
        width: in pixels.
        height: in pixels.
        path: its file, for the message.

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
    """Makes what torch draws on the CPU inside the block depend on `numbers` only, and nothing outside of it.

    Args:
        *numbers: non-negative integers.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators too
        yield


def _none(size: int, resize: Resize, interpolation: Any) -> View:
    from torchvision.transforms import v2

    if resize == "squash":
        return View(_scaled((size, size), interpolation), v2.PILToTensor())
    return View(v2.Compose([_scaled(_with_margin(size), interpolation), v2.CenterCrop(size)]), v2.PILToTensor())


def _light(size: int, resize: Resize, interpolation: Any) -> View:
    from torchvision.transforms import v2

    flip = [v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if resize == "squash":
        return View(_scaled((size, size), interpolation), v2.Compose(flip))
    return View(_scaled(_with_margin(size), interpolation), v2.Compose([v2.RandomCrop(size), *flip]))


def _strong(size: int, resize: Resize, interpolation: Any) -> View:
    """Magnitude 9 is of 10, as timm counts (`rand-m9`); torchvision's 31 levels would make it a third of that."""
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=interpolation),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=11, interpolation=interpolation, fill=GREY),
        v2.PILToTensor(),
        v2.RandomErasing(p=0.25, value=GREY),
    ]
    return View(v2.Identity(), v2.Compose(steps))


def _contrastive(size: int, resize: Resize, interpolation: Any) -> View:
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=interpolation),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.PILToTensor(),
    ]
    return View(v2.Identity(), v2.Compose(steps))


_VIEWS: dict[str, Callable[[int, Resize, Any], View]] = {
    "none": _none,
    "light": _light,
    "strong": _strong,
    "contrastive": _contrastive,
}


def _scaled(size: tuple[int, ...], interpolation: Any) -> Any:
    """Returns the step that scales to (height, width), or the shorter side to (side,)."""
    from torchvision.transforms import v2

    return v2.Resize(size, interpolation=interpolation, antialias=True)


def _with_margin(size: int) -> tuple[int]:
    return (round(size * MARGIN),)
