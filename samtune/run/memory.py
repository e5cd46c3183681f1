"""How much memory does a training step take, and would a card have it? From what autograd saves in one forward pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from samtune.models.backbone import Backbone

CARDS = (8, 12, 16, 24)  # GB
CONTEXT = 0.6e9
"""Bytes of a card that the driver, CUDA's kernels and the display take before the first tensor."""
SLACK = 1.1
"""An allocator holds more than is asked for."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        fixed: weights, gradients, optimizer, averages and copies of what trains.
        saved: what the forward pass leaves for the backward pass, of `images` images.
        passing: the largest tensors of a pass, beside those.
    """

    fixed: int
    saved: int
    passing: int
    images: int

    @property
    def growth(self) -> int:
        """What a step takes beyond what stays: at the start of the backward pass everything saved is there."""
        return self.saved + self.passing

    def fits(self, gigabytes: int) -> bool:
        """Tells whether a card would do."""
        return self.needed(self.images) <= gigabytes * 1e9

    def most(self, gigabytes: int) -> int:
        """Returns the most images per forward pass that a card would take; 0 for none."""
        room = gigabytes * 1e9 / SLACK - CONTEXT - self.fixed
        return max(0, int(room * self.images / max(self.growth, 1)))

    def needed(self, images: int) -> float:
        """Returns the bytes of a card that so many images per forward pass need."""
        return SLACK * (CONTEXT + self.fixed + self.growth * images / self.images)

    def __str__(self) -> str:
        cards = [f"{size} GB {'yes' if self.fits(size) else self._instead(size)}" for size in CARDS]
        return (
            f"{self.needed(self.images) / 1e9:.1f} GB with {self.images} images per pass; a card of {', '.join(cards)}"
        )

    def _instead(self, gigabytes: int) -> str:
        most = self.most(gigabytes)
        return f"no (train.batch={most} would)" if most else "no"


def step_memory(
    model: Backbone, trainable: Mapping[str, nn.Parameter], forward: Callable[[], Tensor], *, images: int, ema: bool
) -> StepMemory:
    """Runs one forward pass and weighs what it leaves.

    Args:
        model: attached, in training mode.
        forward: returns the loss of `images` images.
    """
    stays = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
    saved: dict[int, int] = {}
    largest = 0  # of what a module returns: of a part without gradients nothing is saved, but it passes

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.untyped_storage().nbytes())

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stays:
            saved[storage.data_ptr()] = storage.nbytes()  # views of one storage are saved once
        return tensor

    hook = register_module_forward_hook(note)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = forward()  # keeps the graph, and with it the addresses
    finally:
        hook.remove()
    trained = sum(4 * parameter.numel() for parameter in trainable.values())
    copies = 4 + ema  # gradient, two moments, the best values; and the moving average
    passing = 2 * max(largest, *saved.values())
    del loss
    return StepMemory(sum(stays.values()) + copies * trained, sum(saved.values()), passing, images)


def _tensors(model: Backbone) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
