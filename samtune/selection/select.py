"""`select`: runs a selector, adds what trains beside it, and leaves out what the user excludes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from samtune.config.options import option_problems
from samtune.errors import ConfigError, unknown_name
from samtune.models.backbone import Backbone
from samtune.selection.budget import parse_budget, select_within, solve
from samtune.selection.selection import Selection
from samtune.selection.selector import check_scores
from samtune.selection.table import SELECTORS
from samtune.types import Scores


def select(
    model: Backbone,
    scores: Scores | None,
    *,
    name: str,
    budget: int | str | None = None,
    decoder: bool = True,
    biases: bool | None = None,
    exclude: Sequence[str] = (),
    **options: object,
) -> Selection:
    """Runs a selector and adds what trains beside it.

    Args:
        scores: of a scoring pass; None for selectors that need none.
        budget: parameters that the selector may pick and add, as a number or as text such as "0.5%" of the model;
            sets the selector's knob. Biases, norms, decoder and head come on top.
        decoder: also train the mask decoder and the no-mask embedding, or the classification head, whole.
        biases: also train the backbone's biases whole; None does as the method's paper.
        exclude: labels of `model.parts()`, such as "block 0", in which nothing trains. The selector chooses as if
            all of the model was there; what falls into these parts is dropped and not made up for.

    Raises:
        ConfigError: unknown name, option or part, a value or budget that does not fit, missing or wrong scores, or
            nothing to train.
        NonFiniteError: NaN or infinity in the scores.
    """
    solved = check_select(model, name=name, budget=budget, exclude=exclude, **options)
    selector = SELECTORS[name]
    needs = selector.needs(**solved)
    if needs is not None:
        if scores is None:
            raise ConfigError(f"select.name={name} needs scores; run a scoring pass first.")
        check_scores(scores, needs, model)
    if budget is None:
        selection = selector.function(model, scores, **solved)
    else:
        selection = select_within(model, scores, selector, solved, _limit(model, budget))
    wanted = {"decoder", "head"} if decoder else set()
    if selector.biases if biases is None else biases:
        wanted.add("bias")
    selection = selection.add_whole([n for n, role in model.roles().items() if role in wanted])
    selection = _leave_out(model, selection, exclude)
    if not selection.names() and not selection.additions:
        rest = ", no biases and these parts excluded" if exclude else " and no biases"
        raise ConfigError(f"select.name={name} with tune.decoder=false{rest} leaves nothing to train.")
    return selection


def check_select(
    model: Backbone, *, name: str, budget: int | str | None = None, exclude: Sequence[str] = (), **options: object
) -> dict[str, object]:
    """Checks everything that can be wrong with a call of `select` before a scoring pass is spent on it.

    Args:
        model, name, budget, exclude, **options: as of `select`.

    Returns:
        The options, with the value of the knob that the budget buys.

    Raises:
        ConfigError: unknown name, option or part, a value or budget that does not fit.
    """
    problems = option_problems("selector", name, options, {key: row.signature for key, row in SELECTORS.items()})
    if problems:
        raise ConfigError("; ".join(f"select.{key}: {text}" for key, text in problems))
    labels = set(model.parts().values())
    for label in exclude:
        if label not in labels:
            raise ConfigError(f"tune.exclude: {unknown_name('part', label, labels)}")
    if budget is not None:
        return solve(model, SELECTORS, name, options, _limit(model, budget))
    SELECTORS[name].check(model, **options)
    return options


def _limit(model: Backbone, budget: int | str) -> int:
    return parse_budget(budget, sum(p.numel() for p in model.parameters()))


def _leave_out(model: Backbone, selection: Selection, exclude: Sequence[str]) -> Selection:
    """Returns the selection without the tensors and hosts in the parts with these labels."""
    parts = model.parts()
    gone = {name for name, label in parts.items() if label in exclude}
    return replace(
        selection,
        entries={name: indices for name, indices in selection.entries.items() if name not in gone},
        whole=tuple(name for name in selection.whole if name not in gone),
        additions=tuple(a for a in selection.additions if not any(n.startswith(f"{a.module}.") for n in gone)),
    )
