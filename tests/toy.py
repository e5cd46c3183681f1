"""A Segment Anything of 100 k parameters, with a windowed and a global block, and batches for it."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from samtune.models.sam.lite import LiteSam
from samtune.models.sam.model import SamModel
from samtune.models.sam.specs import LiteSpec, SamSpec
from samtune.models.sam.vit import VitSam
from samtune.models.sam.weights import load_sam
from samtune.models.table import ModelEntry
from samtune.models.weights import RANDOM
from samtune.types import Batch, Prompts, Size

Model = TypeVar("Model", bound=SamModel)
SIZE = 64
ENTRY = ModelEntry("toy:build_toy", "masks")  # what makes it a model of the table
# 64 px are 4 x 4 cells, so the windows of 3 cells of block 0 are padded
SPEC = SamSpec(32, 2, 2, (1,), image_size=SIZE, window=3, prompt_dim=32, decoder_mlp=32)
LITE_SPEC = LiteSpec("mobilenetv2_035", width=32, decoder_mlp=32, image_size=SIZE)  # of the same blocks, but thin


def toy_model(*, seed: int = 0, image_size: int | None = None, dtype: torch.dtype = torch.float32) -> VitSam:
    """Returns the model with noise on every parameter: segment-anything starts position tables and biases at 0."""
    return deepcopy(_toy_model(seed, image_size, dtype))  # made once: a copy takes half the time


def toy_lite(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> LiteSam:
    """Returns a light SAM of 400 k parameters, with noise on every parameter and on the batch statistics."""
    return deepcopy(_toy_lite(seed, dtype))


@cache
def _toy_model(seed: int, image_size: int | None, dtype: torch.dtype) -> VitSam:
    return _with_noise(VitSam("toy", SPEC, image_size).eval(), seed, dtype)


@cache
def _toy_lite(seed: int, dtype: torch.dtype) -> LiteSam:
    model = _with_noise(LiteSam("toy_lite", LITE_SPEC).eval(), seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


def _with_noise(model: Model, seed: int, dtype: torch.dtype) -> Model:
    generator = torch.Generator().manual_seed(seed)
    model.net.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.normal_(generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            start = torch.ones(()) if parameter.ndim == 1 and bool((parameter == 1).all()) else torch.zeros(())
            fan_in = max(parameter[0].numel(), 4)
            parameter.copy_(start + torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    model.to(dtype)
    model.net.prompt_encoder.pe_layer.float()  # segment-anything computes its random features in float32
    return model


def build_toy(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
) -> SamModel:
    """Builds it as a row of the table of models does; `toy_lite` is the light one."""
    model = toy_lite() if name == "toy_lite" else toy_model(image_size=image_size)
    load_sam(model, checkpoint or RANDOM, classes=classes, channels=channels)
    return model


def toy_batch(
    *, seed: int = 0, sizes: tuple[Size, ...] = ((64, 48), (40, 64)), prompts: Prompts | None = None
) -> Batch:
    """Returns noise images, each with a disc-like target, padded at the right or at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), 3, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.zeros(len(sizes), 1, SIZE, SIZE, dtype=torch.bool)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for item, (height, width) in enumerate(sizes):
        images[item, :, :height, :width] = torch.randint(
            0, 256, (3, height, width), generator=generator, dtype=torch.uint8
        )
        masks[item, 0] = (rows - 18) ** 2 + (columns - 20) ** 2 < 16**2
    return Batch(
        images=images,
        masks=masks,
        sizes_input=sizes,
        names=tuple(f"image{seed}_{item}" for item in range(len(sizes))),
        truths=tuple(np.asarray(m[0, :h, :w]) for m, (h, w) in zip(masks, sizes, strict=True)),
        prompts=prompts,
    )


def prompts_of(kind: str, *, batch: int = 2, side: int = SIZE) -> Prompts | None:
    """Returns different prompts for each item: `none`, `box`, `point`, `points` (one padded), or `both`."""
    steps = torch.arange(batch)[:, None] * 3.0
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7]]) * side + steps
    points = torch.tensor([[[0.3, 0.4], [0.8, 0.7]]]) * side + steps[:, None]
    labels = torch.tensor([[1, 0], [0, -1]]).repeat(batch, 1)[:batch]
    return {
        "none": None,
        "box": Prompts(boxes_input=boxes),
        "point": Prompts(points_input=points[:, :1], labels=torch.ones(batch, 1, dtype=torch.int64)),
        "points": Prompts(points_input=points, labels=labels),
        "both": Prompts(boxes, points, labels),
    }[kind]
