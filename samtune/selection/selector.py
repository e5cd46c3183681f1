"""What a row of `SELECTORS` is, and the scores that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from samtune.errors import ConfigError
from samtune.models.tunable import TunableModel
from samtune.selection.selection import Selection
from samtune.types import Granularity, Scores


@dataclass(frozen=True)
class Needs:
    """A scoring pass that a selector needs.

    Attributes:
        loss: whose gradient: a contrastive loss on features, or the task's own.
        per: what one gradient is of.
        squares: whether the squared gradients are summed too.
    """

    loss: Literal["contrastive", "task"]
    per: Granularity = "batch"
    squares: bool = False


@dataclass(frozen=True)
class Selector:
    """A row of `SELECTORS`.

    Attributes:
        function: `(model, scores, **options) -> Selection` of backbone entries and additions.
        needs: `(**options) -> Needs | None`, the scoring pass; None for none.
        check: `(model, **options)`, raises `ConfigError` for options that don't fit the model; needs no scores.
        size: `(model, **options)`, the number of parameters that `function` picks, as `budget.picked` counts them.
        biases: whether the method's paper also trains the biases of the backbone's linear and conv layers.
        knob: the option that a budget is solved for; None where the size is fixed.
        identity: whether the attached model equals the untouched one before the first step.
        merges: whether the tuned model ends as a stock checkpoint, with default options.
    """

    function: Callable[..., Selection]
    needs: Callable[..., Needs | None]
    check: Callable[..., None]
    size: Callable[..., int]
    biases: bool
    knob: str | None = None
    identity: bool = True
    merges: bool = True


def check_scores(scores: Scores | None, needs: Needs, model: TunableModel) -> None:
    """Refuses scores that are missing, of another kind, or of another model.

    Raises:
        ConfigError: naming what is missing or does not fit.
    """
    if scores is None:
        raise ConfigError("no scores were given; run a scoring pass first.")
    if scores.per != needs.per:
        raise ConfigError(f"the scores are of gradients per {scores.per}, but per {needs.per} is needed; score again.")
    if needs.squares and scores.squares is None:
        raise ConfigError("the scores have no squared gradients; score again with squares=True.")
    tables = (scores.sums, scores.squares if needs.squares else None)
    for table in (table for table in tables if table is not None):
        for name, parameter in model.named_parameters():
            if name not in table:
                raise ConfigError(f"the scores have no {name!r}, which {model.name} has: scores of another model?")
            if table[name].shape != parameter.shape:
                raise ConfigError(
                    f"the scores of {name!r} have the shape {tuple(table[name].shape)}, the parameter of {model.name} "
                    f"has {tuple(parameter.shape)}: scores of another model?"
                )
