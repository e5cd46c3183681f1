"""What a training is at a step: all that it needs to go on from there, bit for bit."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps made, counted from its start.
        epoch: the epoch that it is in, from 1; `done` are the steps made in it.
        passes: forward passes so far.
        skipped: steps left out because a loss or gradient was not finite; `in_a_row` are those since the last update.
        part: the most images per forward pass, where memory asked for less than a batch; None for all.
        best_epoch: the epoch of the best value by validation, 0 before any; `best_step` are the steps made by then.
        best_value: None where nothing was measured, or it was NaN.
        seconds: of training so far, over all processes that took part one after another.
        finished: whether it came to its end.
    """

    step: int = 0
    epoch: int = 1
    done: int = 0
    passes: int = 0
    skipped: int = 0
    in_a_row: int = 0
    part: int | None = None
    best_epoch: int = 0
    best_step: int = 0
    best_value: float | None = None
    seconds: float = 0.0
    finished: bool = False


class RandomState(TypedDict):
    """States of the random generators of torch, Python and NumPy, as JSON can hold them."""

    torch: str
    cuda: str | None
    python: list[Any]
    numpy: list[Any]


@dataclass(frozen=True)
class TrainState:
    """A training after a step.

    Attributes:
        values: what trains, by name.
        optimizer: `KEY/NAME`: the optimizer's KEY, such as exp_avg, of what trains under NAME.
        averages: the moving averages by name; None without.
        best: values of the best epoch by name; None before any.
    """

    progress: Progress
    values: Tensors
    optimizer: Tensors
    averages: Tensors | None
    best: Tensors | None
    random: RandomState


def random_state() -> RandomState:
    """Returns the states of all random generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    cuda = _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None
    return RandomState(
        torch=_text(torch.get_rng_state()),
        cuda=cuda,
        python=[version, list(internal), gauss],
        numpy=[kind, keys.tolist(), *rest],  # type: ignore[union-attr]
    )


def set_random_state(state: RandomState) -> None:
    """Puts all random generators into a state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


def _text(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
