"""How much memory does a training step take, and would a card have it? From what autograd saves in one forward pass."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        passing: what is there beside those at the worst moment of a pass.
    """

    fixed: int
    saved: int
    passing: int
    images: int

    @property
    def growth(self) -> int:
        """What a step takes beyond what stays."""
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

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stays:
            saved[storage.data_ptr()] = storage.nbytes()  # views of one storage are saved once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Alive() as alive:
        loss = forward()  # keeps the graph, and with it the addresses
    trained = sum(4 * parameter.numel() for parameter in trainable.values())
    copies = 4 + ema  # gradient, two moments, the best values; and the moving average
    sizes = list(saved.values())
    # on its way back a pass has what was saved up to there, and two such tensors; a frozen encoder passes more on
    back = max((before + 2 * size for before, size in zip(accumulate(sizes), sizes, strict=True)), default=0)
    passing = max(back, alive.most) - sum(sizes)
    del loss
    return StepMemory(sum(stays.values()) + copies * trained, sum(sizes), passing, images)


def _tensors(model: Backbone) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Weighs the tensors that operations make, as long as anything holds them.

    Attributes:
        most: bytes, at the worst moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for storage in (tensor.untyped_storage() for tensor in tree_leaves(result) if _is_tensor(tensor)):
            if storage.data_ptr() not in given and storage not in self._known:  # neither a view nor in place
                self._known.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self._now)
        return result

    def _gone(self, size: int) -> None:
        self._now -= size


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
