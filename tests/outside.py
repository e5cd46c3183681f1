"""A model that the package does not know: what somebody else writes to tune a network of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.models.backbone import Backbone
from samtune.models.table import ModelEntry
from samtune.models.weights import RANDOM, load_weights
from samtune.types import Batch, Role

ENTRY = ModelEntry("outside:build", "masks")


class Network(nn.Module):
    """Patches of 8 px, two blocks of a linear layer with batch norm before it, and a linear map to a logit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.BatchNorm2d(16), "fc1": nn.Linear(16, 16)}) for _ in range(2)
        )
        self.decoder = nn.Conv2d(16, 1, 1)

    def embed(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for block in self.blocks:
            x = x + block["fc1"](block["norm"](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()  # type: ignore[index]
        return x  # type: ignore[no-any-return]


class OutsideModel(Backbone):
    """What the package asks for."""

    net: Network

    def forward(self, batch: Batch) -> Tensor:
        return self.net.decoder(self.features(batch))  # type: ignore[no-any-return]

    def features(self, batch: Batch) -> Tensor:
        return self.net.embed((batch.images.float() - self.pixel_mean) / self.pixel_std)

    def block_modules(self) -> list[str]:
        return [f"blocks.{index}" for index in range(len(self.net.blocks))]

    def role(self, name: str, owner: nn.Module) -> Role:
        if name.startswith("decoder."):
            return "decoder"
        if isinstance(owner, nn.BatchNorm2d):
            return "norm"
        if name.endswith(".bias"):
            return "bias"
        return "linear" if isinstance(owner, nn.Linear) else "conv"


def build(name: str, *, checkpoint: str | Path | None = None, image_size: int | None = None, **_: Any) -> OutsideModel:
    """Builds it as a row of the table of models does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    model = OutsideModel(network, name=name, image_size=image_size or 64, mean=(120, 110, 100), std=(60, 60, 60))
    if checkpoint not in (None, RANDOM):
        load_weights(model, Path(str(checkpoint)))
    return model.eval()
