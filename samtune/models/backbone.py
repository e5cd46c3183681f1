"""What selectors and tuners ask of a model: the one place where a network's parameters get their meaning.

A model file states where its blocks are, which role each parameter has, and which weights are several matrices in
one; everything else is derived here. Nothing outside of `samtune.models` tests substrings of names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtune.types import Interpolation, Role

_TARGETS = {"lin1": "fc1", "lin2": "fc2"}  # segment-anything's names of what everybody else calls fc1 and fc2


class TunableModel(nn.Module):
    """Base class of the models: a plain pretrained module that can say what its parameters are.

    Attributes:
        name: name of the architecture.
        image_size: side in pixels of the square input.
        checkpointing: whether blocks are recomputed in the backward pass: less memory, more time.
    """

    name: str
    image_size: int
    checkpointing: bool
    options: dict[str, Any] = {}  # noqa: RUF012
    head_seed: int | None = None
    interpolation: Interpolation = "bilinear"
    pixel_mean: Tensor
    pixel_std: Tensor

    def features(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def stock_notes(self, file: Path) -> list[str]:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    def roles(self) -> dict[str, Role]:
        """Returns parameter name -> role, complete."""
        raise NotImplementedError

    def parts(self) -> dict[str, str]:
        """Returns parameter name -> label of the part of the network that it belongs to: `block 0`, `neck`, ..."""
        labels = {module: f"block {index}" for index, module in enumerate(self.block_modules())}
        found = {}
        for name, _ in self.named_parameters():
            owner = next((label for module, label in labels.items() if name.startswith(module + ".")), None)
            found[name] = owner or self.part(name)
        return found

    def part(self, name: str) -> str:
        """Returns the label of the part that a parameter outside of all blocks belongs to."""
        return name.partition(".")[0]

    def block_modules(self) -> list[str]:
        """Returns the names of the transformer (or ConvNeXt) blocks, from the first to the last."""
        raise NotImplementedError

    def stem_part(self) -> str:
        """Returns the label of the part that embeds patches: the owner of the first convolution."""
        roles, parts = self.roles(), self.parts()
        return next(parts[name] for name, _ in self.named_parameters() if roles[name] == "conv")

    def token_blocks(self) -> list[str]:
        """Returns the blocks of a plain ViT, which map (B, N, C) tokens and attend over all N; else nothing."""
        return []

    def head_module(self) -> str | None:
        """Returns the name of the classification head, an `nn.Linear`; None where there is none."""
        return None

    def fused(self) -> dict[str, int]:
        """Returns weight name -> number of equal matrices stacked in its rows: 3 for a fused qkv."""
        return {f"{module}.weight": 3 for module in self.linears().get("qkv", [])}

    def linears(self) -> dict[str, list[str]]:
        """Returns target (`qkv`, `proj`, `fc1`, `fc2`) -> names of the linear layers of the blocks, in order."""
        found: dict[str, list[str]] = {}
        for block in self.block_modules():
            for name, module in self.get_submodule(block).named_modules():
                if isinstance(module, nn.Linear):
                    short = name.rpartition(".")[2]
                    found.setdefault(_TARGETS.get(short, short), []).append(f"{block}.{name}")
        return found

    def sublayers(self) -> dict[str, dict[str, int]]:
        """Returns `attention` and `mlp`, as far as there are any: module name -> width C of its (..., C) output."""
        linears = {target: set(modules) for target, modules in self.linears().items()}
        found: dict[str, dict[str, int]] = {}
        for block in self.block_modules():
            for kind, short, last in (("attention", "attn", "proj"), ("mlp", "mlp", "fc2")):
                module = f"{block}.{short}"
                ends = [name for name in linears.get(last, ()) if name.startswith(module + ".")]
                if ends:
                    width: int = self.get_submodule(ends[0]).out_features  # type: ignore[assignment]
                    found.setdefault(kind, {})[module] = width
        return found


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets a model to evaluation mode inside the block; its modules get their own modes back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
