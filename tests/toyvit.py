"""Classifiers of 20 to 100 k parameters, one of each family, and batches for them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch

from samtune.models.timm.model import Classifier, build_classifier
from samtune.types import LabelledBatch

SIZE = 32
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"image_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"image_size": SIZE, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4},
    ),
    "convnext": ("convnext_tiny", {"image_size": SIZE, "dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1)}),
}


def toy_classifier(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Classifier:
    """Returns a model of the family with noise on every parameter: timm starts biases and tables at 0."""
    return deepcopy(_toy_classifier(family, seed, dtype))  # made once: a copy takes less time


@cache
def _toy_classifier(family: str, seed: int, dtype: torch.dtype) -> Classifier:
    name, options = FAMILIES[family]
    model = build_classifier(name, classes=3, checkpoint="random", seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            start = torch.ones(()) if parameter.ndim == 1 and bool((parameter == 1).all()) else torch.zeros(())
            fan_in = max(parameter[0].numel(), 4)
            parameter.copy_(start + torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.to(dtype)


def labelled_batch(*, seed: int = 0, size: int = 6) -> LabelledBatch:
    """Returns noise images of three classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return LabelledBatch(images, torch.arange(size) % 3, tuple(f"image{seed}_{item}" for item in range(size)))
