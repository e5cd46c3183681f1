"""Selectors: functions that decide *which* entries train. How they train is `samtune.tuning`'s business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samtune.errors import ConfigError, unknown_name
from samtune.models.sam import SamModel
from samtune.selection.gps import check_gps, gps
from samtune.selection.heuristics import full, linear
from samtune.selection.selection import Selection, check_selection, load_selection, save_selection
from samtune.types import Scores

__all__ = ["SELECTORS", "Selection", "Selector", "check_selection", "load_selection", "save_selection", "select"]


@dataclass(frozen=True)
class Selector:
    """A row of `SELECTORS`.

    Attributes:
        function: `(model, scores, **options) -> Selection` of encoder entries.
        scored: whether it needs a scoring pass.
        biases: whether the method's paper also trains the encoder's biases.
        check: `(model, **options)`, raises `ConfigError` for options that don't fit the model; needs no scores.
    """

    function: Callable[..., Selection]
    scored: bool
    biases: bool
    check: Callable[..., None] | None = None


SELECTORS: dict[str, Selector] = {
    "gps": Selector(gps, scored=True, biases=True, check=check_gps),
    "linear": Selector(linear, scored=False, biases=False),
    "full": Selector(full, scored=False, biases=True),
}


def select(
    model: SamModel,
    scores: Scores | None,
    *,
    name: str,
    decoder: bool = True,
    biases: bool | None = None,
    **options: object,
) -> Selection:
    """Runs a selector and adds what trains beside it.

    Args:
        model: the pretrained model.
        scores: of a scoring pass; None for selectors that need none.
        name: key of `SELECTORS`.
        decoder: also train the mask decoder and the no-mask embedding whole.
        biases: also train the encoder's biases whole; None does as the method's paper.
        **options: of the selector's function.

    Raises:
        ConfigError: unknown name, missing scores, or nothing to train.
    """
    if name not in SELECTORS:
        raise ConfigError(unknown_name("selector", name, SELECTORS))
    selector = SELECTORS[name]
    if selector.scored and scores is None:
        raise ConfigError(f"select.name={name} needs scores; run a scoring pass first.")
    selection = selector.function(model, scores, **options)
    wanted = {"decoder"} if decoder else set()
    if selector.biases if biases is None else biases:
        wanted.add("bias")
    selection = selection.add_whole([n for n, role in model.roles().items() if role in wanted])
    if not selection.names():
        raise ConfigError(f"select.name={name} with tune.decoder=false and no biases leaves nothing to train.")
    return selection
