"""Which part of the work is this process's? Several may train one model together, each with a share of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process among those that work together; alone, everything is its own, and nothing is sent.

    `add`, `total`, `any` and `of_first` wait for all: every process must call them, in the same order.

    Attributes:
        number: of this process, from 0.
        count: of all processes.
        device: of this one.
    """

    number: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.number == 0

    def part(self, items: int) -> slice:
        """Returns this process's part of so many items in order; it may be empty."""
        each = -(-items // self.count)
        return slice(self.number * each, (self.number + 1) * each)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Adds each tensor up over all processes, in place; all get the same bits."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat(
            [tensor.reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
        )
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, *values: float) -> list[float]:
        """Returns the sums of numbers over all processes; NaN where one is NaN."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def any(self, flag: bool) -> bool:
        """Tells whether it is true for some process."""
        return self.total(float(flag))[0] > 0

    def of_first(self, value: T) -> T:
        """Returns the value that the first process has, which others wait for."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, 0, device=torch.device(self.device))
        return values[0]
