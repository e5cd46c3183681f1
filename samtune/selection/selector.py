"""What a row of `SELECTORS` is, and the scores that it asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from samtune.base.tensors import state_hash
from samtune.errors import ConfigError, NonFiniteError
from samtune.models.backbone import Backbone
from samtune.scoring.inputs import input_shapes
from samtune.selection.selection import Selection
from samtune.types import Granularity, Scores, Summed


@dataclass(frozen=True)
class Needs:
    """A scoring pass: of a contrastive loss on features or the task's own, with squared gradients if needed.

    Without a loss it is forward passes, of the inputs of the layers.
    """

    loss: Literal["contrastive", "task"] | None
    per: Granularity = "batch"
    squares: bool = False

    @property
    def of(self) -> Summed:
        """What it adds up."""
        return "gradients" if self.loss is not None else "inputs"


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
        options: a class whose keyword-only arguments are the options; None: those of `function` are.
    """

    function: Callable[..., Selection]
    needs: Callable[..., Needs | None]
    check: Callable[..., None]
    size: Callable[..., int]
    biases: bool
    knob: str | None = None
    identity: bool = True
    merges: bool = True
    options: Callable[..., object] | None = None

    @property
    def signature(self) -> Callable[..., object]:
        """What an options block is checked against: its keyword-only arguments, with types, bounds and defaults."""
        return self.options or self.function


def check_scores(scores: Scores, needs: Needs, model: Backbone) -> None:
    """Refuses scores of another kind, of another model, or that are not finite.

    The loss is not compared: GPS with the task's loss, for one, is an ablation of its paper (Tab. 6 c).

    Args:
        model: its weights are compared where the scores have a `base_hash`.

    Raises:
        ConfigError: naming what is missing or does not fit.
        NonFiniteError: NaN or infinity in a sum, or in a square where they are needed.
    """
    if scores.of != needs.of:
        raise ConfigError(f"the scores are of {scores.of}, but {needs.of} are needed; score again.")
    if scores.per != needs.per:
        raise ConfigError(f"the scores are of gradients per {scores.per}, but per {needs.per} is needed; score again.")
    if needs.squares and scores.squares is None:
        raise ConfigError("the scores have no squared gradients; score again with squares=True.")
    tables = {"sum": scores.sums}
    if needs.squares and scores.squares is not None:
        tables["square"] = scores.squares
    own = {name: tuple(parameter.shape) for name, parameter in model.net.named_parameters()}
    shapes = own if needs.of == "gradients" else input_shapes(model)
    for name, shape in shapes.items():
        for table in tables.values():
            if name not in table:
                raise ConfigError(f"the scores have no {name!r}, which {model.name} has: scores of another model?")
            if table[name].shape != shape:
                what = "parameter" if needs.of == "gradients" else "layer's input"
                raise ConfigError(
                    f"the scores of {name!r} have the shape {tuple(table[name].shape)}, the {what} of {model.name} "
                    f"has {shape}: scores of another model?"
                )
    found = state_hash(dict(model.net.state_dict())) if scores.base_hash else ""
    if found != scores.base_hash:
        raise ConfigError(
            f"the scores are of another checkpoint of {model.name} (weights {scores.base_hash[:12]}, here "
            f"{found[:12]}); score again, or set model.checkpoint to the one that was scored."
        )
    for kind, table in tables.items():
        for name in shapes:
            if not bool(table[name].isfinite().all()):
                raise NonFiniteError(
                    f"the scores of {name!r} hold NaN or infinity (the {kind}s of its {needs.of}); "
                    "score again, with finite weights and images."
                )
