"""A network from outside of the package, with what samtune must know of it: one class, and one line of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.models.backbone import Backbone
from samtune.models.table import ModelEntry
from samtune.models.weights import RANDOM, load_weights
from samtune.types import Role

NAME = "toy_net"
ENTRY = ModelEntry("toy_backbone:build_toy_net", "masks")


class ToyNet(nn.Module):
    """A stem with batch norm, two blocks and a head: (B, 3, S, S) to (B, 1, S/4, S/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Conv2d(8, 1, 1)


class ToyBackbone(Backbone):
    """What samtune knows of `ToyNet`."""

    net: Any

    def forward(self, batch: Any) -> Tensor:
        return self.net.head(self.features(batch))  # type: ignore[no-any-return]

    def features(self, batch: Any) -> Tensor:
        x = self.net.stem((batch.images.float() - self.pixel_mean) / self.pixel_std)
        for block in self.net.blocks:
            x = x + block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x  # type: ignore[no-any-return]

    def block_modules(self) -> list[str]:
        return ["blocks.0", "blocks.1"]

    def role(self, name: str, owner: nn.Module) -> Role:
        return "decoder" if name.startswith("head.") else super().role(name, owner)

    def stock_notes(self, file: Path) -> list[str]:
        return [f"ToyNet().load_state_dict(torch.load({str(file)!r})) loads it"]


def build_toy_net(
    name: str, *, checkpoint: str | Path | None = None, image_size: int | None = None, **options: Any
) -> ToyBackbone:
    """Builds the network; its own weights are those of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ToyNet()
    size = 64 if image_size is None else image_size
    model = ToyBackbone(net, name=name, image_size=size, mean=(127.5,) * 3, std=(127.5,) * 3, options=options).eval()
    if checkpoint not in (None, RANDOM):
        load_weights(model, Path(str(checkpoint)))
    return model
