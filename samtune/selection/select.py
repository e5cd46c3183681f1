"""`select`: runs a selector of the table, adds what trains beside it, and leaves out what the user excludes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from samtune.config.options import option_problems
from samtune.errors import ConfigError, unknown_name
from samtune.models.backbone import Backbone
from samtune.selection import baselines
from samtune.selection.budget import parse_budget, picked, select_within, solve
from samtune.selection.gps import check_gps, gps, gps_needs, gps_size
from samtune.selection.grft import check_grft, grft, grft_size
from samtune.selection.selection import Selection
from samtune.selection.selector import Needs, Selector, check_scores
from samtune.selection.spt import SptOptions, check_spt, spt, spt_needs, spt_size
from samtune.types import Scores


def _unscored(function: Callable[..., Selection], **row: Any) -> Selector:
    """A selector without scores: its choice costs nothing, so making it is the check, and counting it the size."""

    def check(model: Backbone, **options: object) -> None:
        function(model, None, **options)

    def size(model: Backbone, **options: object) -> int:
        return picked(model, function(model, None, **options))

    return Selector(function, lambda **options: None, check, size, **row)


SELECTORS: dict[str, Selector] = {
    "gps": Selector(gps, gps_needs, check_gps, gps_size, biases=True, knob="per_neuron"),
    "grft": Selector(grft, lambda **_: Needs("contrastive"), check_grft, grft_size, biases=True, knob="k"),
    "spt": Selector(spt, spt_needs, check_spt, spt_size, biases=False, knob="tau", options=SptOptions),
    "full": _unscored(baselines.full, biases=True),
    "linear": _unscored(baselines.linear, biases=False),
    "bias": _unscored(baselines.bias, biases=True),
    "partial": _unscored(baselines.partial, biases=False, knob="blocks"),
    "lora": _unscored(baselines.lora, biases=False, knob="rank"),
    "ssf": _unscored(baselines.ssf, biases=False),
    "adapter": _unscored(baselines.adapter, biases=False, knob="width", merges=False),
    "adaptformer": _unscored(baselines.adaptformer, biases=False, knob="width", merges=False),
    "vpt_shallow": _unscored(baselines.vpt_shallow, biases=False, knob="prompts", identity=False, merges=False),
    "vpt_deep": _unscored(baselines.vpt_deep, biases=False, knob="prompts", identity=False, merges=False),
    "mlp": _unscored(baselines.mlp, biases=False, knob="layers", identity=False, merges=False),
}


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
    """Runs a selector and adds what trains beside it; entries that the pretrained weights lack always do.

    Args:
        scores: of a scoring pass; None for selectors that need none.
        budget: parameters that the selector may pick and add, a number or text such as "0.5%" of the model; sets
            the selector's knob. Biases, norms, decoder and head come on top.
        decoder: also train the mask decoder and the no-mask embedding, or the classification head, whole.
        biases: also train the backbone's biases whole; None does as the method's paper.
        exclude: labels of `model.parts()`, such as "block 0": what is chosen there is dropped, not made up for.

    Raises:
        ConfigError: as `check_select`, missing or wrong scores, or nothing to train.
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
    whole = [name for name, role in model.roles().items() if role in wanted]
    selection = selection.add_whole(whole).add_entries(model.new_entries())
    gone = {name for name, label in model.parts().items() if label in exclude}
    selection = replace(
        selection,
        entries={name: indices for name, indices in selection.entries.items() if name not in gone},
        whole=tuple(name for name in selection.whole if name not in gone),
        additions=tuple(a for a in selection.additions if not any(n.startswith(f"{a.module}.") for n in gone)),
    )
    if not selection.names() and not selection.additions:
        rest = ", no biases and these parts excluded" if exclude else " and no biases"
        raise ConfigError(f"select.name={name} with tune.decoder=false{rest} leaves nothing to train.")
    return selection


def check_select(
    model: Backbone, *, name: str, budget: int | str | None = None, exclude: Sequence[str] = (), **options: object
) -> dict[str, object]:
    """Checks what can be wrong with a call of `select` before a scoring pass; returns the options within the budget.

    Raises:
        ConfigError: unknown name, option or part, a value or budget that does not fit.
    """
    signatures = {key: row.signature for key, row in SELECTORS.items()}
    if problems := option_problems("selector", name, options, signatures):
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
