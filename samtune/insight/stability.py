"""How sure a selection is: the noise of its scores, and what stays the same with other seeds and other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor

from samtune.errors import ConfigError, DataError
from samtune.insight.distribution import Overlap, overlap, ratio, weights_of
from samtune.models.backbone import Backbone
from samtune.scoring.score import ScoreLoss, score
from samtune.selection.selection import Selection, check_selection
from samtune.types import Granularity, Scores


@dataclass(frozen=True)
class Noisy:
    """How many summed gradients are no larger than their standard error, in one place.

    Attributes:
        chosen: chosen entries.
        chosen_noisy: those of them with |sum| <= its standard error.
        entries: all entries of the weights.
        entries_noisy: those of them with |sum| <= its standard error.
    """

    chosen: int = 0
    chosen_noisy: int = 0
    entries: int = 0
    entries_noisy: int = 0

    @property
    def chosen_share(self) -> float:
        """Of the chosen entries; NaN where none is chosen."""
        return ratio(self.chosen_noisy, self.chosen)

    @property
    def share(self) -> float:
        """Of all entries."""
        return ratio(self.entries_noisy, self.entries)

    def __add__(self, other: Noisy) -> Noisy:
        names = ("chosen", "chosen_noisy", "entries", "entries_noisy")
        return Noisy(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class Noise:
    """How much of a selection its scores can't tell from zero.

    Attributes:
        parts: part of the network -> counts, in the model's order.
        gradients: n, the gradients that were summed.
    """

    parts: dict[str, Noisy]
    gradients: int

    @property
    def total(self) -> Noisy:
        """The sum of all parts."""
        return sum(self.parts.values(), Noisy())

    @property
    def pure(self) -> float:
        """The share to expect if every gradient were zero-mean noise: P(|t| <= 1), Student's t with n - 1 degrees."""
        from scipy.special import stdtr  # type: ignore[import-untyped]

        return float(2 * stdtr(self.gradients - 1, 1.0) - 1)


def noise(model: Backbone, scores: Scores, selection: Selection) -> Noise:
    """Counts the entries whose summed gradient is no larger than its standard error (see `standard_error`).

    An entry without any gradient (sum and error 0) counts as noise. Chosen entries were picked for large sums, so
    their share is lower than that of all entries even where the sums are noise only: the stability of the selection
    between halves of the images shows what is left of them.

    Args:
        model: plain; its weights are not read.

    Raises:
        CheckpointError: the selection is another model's.
        ConfigError: scores without squares, or of a single gradient.
    """
    check_selection(selection, model)
    if scores.squares is None:
        raise ConfigError("the noise of a selection needs scores with squared gradients; score with squares=True.")
    labels = model.parts()
    parts: dict[str, Noisy] = {}
    for name in weights_of(model, selection):
        error = standard_error(scores.sums[name], scores.squares[name], scores.batches)
        below = (scores.sums[name].double().abs() <= error).flatten().cpu()
        chosen = below[selection.entries[name]] if name in selection.entries else below[:0]
        found = Noisy(len(chosen), int(chosen.sum()), len(below), int(below.sum()))
        parts[labels[name]] = parts.get(labels[name], Noisy()) + found
    return Noise(parts, scores.batches)


def standard_error(sums: Tensor, squares: Tensor, count: int) -> Tensor:
    """Returns the standard error of a sum of n gradients, sqrt(n / (n - 1) * (sum g^2 - (sum g)^2 / n)).

    Args:
        sums: the sums of the gradients, any shape.
        squares: the sums of their squares, of the same shape.
        count: n >= 2.

    Returns:
        Float64 of the same shape: sqrt(n) times the sample standard deviation.

    Raises:
        ConfigError: fewer than two gradients.
    """
    if count < 2:
        raise ConfigError(
            f"a standard error needs at least 2 gradients, and {count} was summed; use more scoring images, or "
            "smaller scoring batches."
        )
    spread = squares.double() - sums.double().square() / count
    return (spread.clamp_min(0) * (count / (count - 1))).sqrt()  # rounding can put it just below 0


class Loader(Protocol):
    """Batches in fixed order that can be gone through more than once: a list, or the loader of the scoring images."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Half:
    """Some batches of a loader, in its order; read again from it each time, so nothing is kept in memory.

    Attributes:
        batches: all of them.
        numbers: positions of those that belong to it.
    """

    batches: Loader
    numbers: frozenset[int]

    def __iter__(self) -> Iterator[Any]:
        return (batch for number, batch in enumerate(self.batches) if number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def split_halves(batches: Loader, *, seed: int) -> tuple[Half, Half]:
    """Splits batches at random into two halves without a common one; of an odd number, the second has one more.


    Raises:
        DataError: fewer than two batches.
    """
    count = len(batches)
    if count < 2:
        raise DataError(
            f"{count} scoring batch can't be split into halves; use more scoring images, or smaller scoring batches."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist()
    first, second = frozenset(order[: count // 2]), frozenset(order[count // 2 :])
    return Half(batches, first), Half(batches, second)


@dataclass(frozen=True)
class Stability:
    """What selections by the same method share.

    Attributes:
        seeds: between two seeds of the scoring loss, on the same images: (label, overlap) of each pair.
        halves: between two halves of the images, with the same seed: (label, overlap) of each split.
    """

    seeds: tuple[tuple[str, Overlap], ...]
    halves: tuple[tuple[str, Overlap], ...]


def stability(
    model: Backbone,
    batches: Loader,
    *,
    loss_of: Callable[[int], ScoreLoss],
    choose: Callable[[Scores], Selection],
    seeds: Sequence[int],
    first: Scores,
    per: Granularity = "batch",
    squares: bool = False,
) -> Stability:
    """Selects again with other seeds, and on halves of the images: two passes for each seed, less the first.

    Args:
        model: pretrained, in fp32; it is left as it was.
        batches: of the training split, in fixed order, two or more.
        loss_of: seed -> the scoring loss; the contrastive loss draws its cells by it.
        choose: scores -> selection.
        seeds: one or more, of the losses and of the splits into halves.
        first: the scores of all images by the first seed.

    Raises:
        DataError: fewer than two batches, or none that can be scored.
    """

    def selected(images: Any, seed: int) -> Selection:
        return choose(score(model, images, loss_of(seed), per=per, squares=squares))

    split = {seed: split_halves(batches, seed=seed) for seed in seeds}  # first, as it can fail
    full = {seed: choose(first) if seed == seeds[0] else selected(batches, seed) for seed in seeds}
    between = [(f"seeds {a} and {b}", overlap(model, full[a], full[b])) for a, b in combinations(full, 2)]
    halves = [
        (f"halves by seed {seed}", overlap(model, selected(first, seed), selected(second, seed)))
        for seed, (first, second) in split.items()
    ]
    return Stability(tuple(between), tuple(halves))
