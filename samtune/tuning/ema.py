"""An exponential moving average of what trains (Polyak averaging), often a better model than the last step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The average of trained values, from now on; what is frozen is never touched.

    Values change by `copy_` under `no_grad`, which autograd counts, so a compact module writes them into its dense
    tensor at the next forward pass.

    Args:
        decay: share of the old average that a late update keeps, in [0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the current values in: average = d * average + (1 - d) * value, d = min(decay, (1 + t) / (10 + t)).

        t are the optimizer steps before this one. The second term is TensorFlow's warm-up: without it the start
        values weigh for 1 / (1 - decay) steps.
        """
        keep = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.to(average.dtype), 1 - keep)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Lends the averages to the model; after the block the raw values are back, bit for bit."""
        raw = [p.detach().clone() for p in self.parameters]
        try:
            _write(self.parameters, self.averages)
            yield
        finally:
            _write(self.parameters, raw)


@torch.no_grad()
def _write(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
