"""How sure a selection is: the noise of its scores, and what stays the same with other seeds and other images."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor

from samtune.errors import ConfigError, DataError
from samtune.insight.distribution import Overlap, Summed, overlap, ratio, weights_of
from samtune.models.backbone import Backbone
from samtune.selection.selection import Selection, check_selection
from samtune.types import Scores


@dataclass(frozen=True)
class Noisy(Summed):
    """Chosen and all entries of one place, and how many of them have |sum| <= its standard error: the noisy ones."""

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


@dataclass(frozen=True)
class Noise:
    """How much of a selection its scores, sums of n `gradients`, can't tell from zero, by part of the network."""

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

    Raises:
        CheckpointError: the selection is another model's.
        ConfigError: scores without squares, or of a single gradient.
    """
    check_selection(selection, model)
    if scores.squares is None:
        raise ConfigError("the noise of a selection needs scores with squared gradients; score with squares=True.")
    labels = model.parts()
    parts: defaultdict[str, Noisy] = defaultdict(Noisy)
    for name in weights_of(model, selection):
        error = standard_error(scores.sums[name], scores.squares[name], scores.batches)
        below = (scores.sums[name].double().abs() <= error).flatten().cpu()
        chosen = below[selection.entries[name]] if name in selection.entries else below[:0]
        parts[labels[name]] += Noisy(len(chosen), int(chosen.sum()), len(below), int(below.sum()))
    return Noise(dict(parts), scores.batches)


def standard_error(sums: Tensor, squares: Tensor, count: int) -> Tensor:
    """Returns the standard error of a sum of n gradients, sqrt(n / (n - 1) * (sum g^2 - (sum g)^2 / n)).

    That is sqrt(n) times the sample standard deviation, float64, of the shape of `sums` and `squares`, which is any.

    Raises:
        ConfigError: fewer than two gradients.
    """
    if count < 2:
        remedy = "use more scoring images, or smaller scoring batches"
        raise ConfigError(f"a standard error needs at least 2 gradients, and {count} was summed; {remedy}.")
    spread = squares.double() - sums.double().square() / count
    return (spread.clamp_min(0) * (count / (count - 1))).sqrt()  # rounding can put it just below 0


class Loader(Protocol):
    """Batches in fixed order that can be gone through more than once: a list, or the loader of the scoring images."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Half:
    """The batches of a loader at these positions, in its order; read again each time, so nothing is kept in memory."""

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
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Half(batches, frozenset(order[: count // 2])), Half(batches, frozenset(order[count // 2 :]))


@dataclass(frozen=True)
class Stability:
    """What selections by the same method share, as (label, overlap): of each pair of seeds, of each split in halves."""

    seeds: tuple[tuple[str, Overlap], ...]
    halves: tuple[tuple[str, Overlap], ...]


def stability(
    model: Backbone,
    batches: Loader,
    *,
    scored: Callable[[Any, int], Scores],
    choose: Callable[[Scores], Selection],
    seeds: Sequence[int],
    first: Scores,
) -> Stability:
    """Selects again with other seeds, and on halves of the images: two passes for each seed, less the first.

    Args:
        model: pretrained, in fp32; it is left as it was.
        batches: of the training split, in fixed order, two or more.
        scored: (batches, seed) -> the scores of a pass; the contrastive loss draws its cells by the seed.
        seeds: one or more, of the passes and of the splits into halves.
        first: the scores of all images by the first seed.

    Raises:
        DataError: fewer than two batches, or none that can be scored.
    """

    def selected(images: Any, seed: int) -> Selection:
        return choose(scored(images, seed))

    split = {seed: split_halves(batches, seed=seed) for seed in seeds}  # first, as it can fail
    full = {seed: choose(first) if seed == seeds[0] else selected(batches, seed) for seed in seeds}
    between = [(f"seeds {a} and {b}", overlap(model, full[a], full[b])) for a, b in combinations(full, 2)]
    halves = [
        (f"halves by seed {seed}", overlap(model, selected(first, seed), selected(second, seed)))
        for seed, (first, second) in split.items()
    ]
    return Stability(tuple(between), tuple(halves))
