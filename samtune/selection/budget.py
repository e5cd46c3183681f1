"""Budgets: a number of parameters to a method's own option, and the count of what a selection picked.

A budget bounds chosen entries, whole weights and added parameters. Biases, norms, decoder and head are counted on
their own lines.
"""

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Context, Decimal

from samtune.config.budget import BUDGETS, read_budget
from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection.baselines import added_size
from samtune.selection.selection import Selection
from samtune.selection.selector import Selector
from samtune.types import Scores


def parse_budget(budget: int | str, total: int) -> int:
    """Returns a budget as a number of parameters.

    Args:
        budget: that number, or text such as "0.5%", rounded down.
        total: parameters of the model, 100 %.

    Raises:
        ConfigError: anything else, or a budget of nothing or of more than the model.
    """
    amount = read_budget(budget)
    if amount is None:
        raise ConfigError(f"select.budget is {budget!r}; give {BUDGETS}.")
    if isinstance(amount, int):
        if amount > total:
            raise ConfigError(
                f"select.budget is {amount:,}, but the model has {total:,} parameters: the largest budget."
            )
        return amount
    count = int(total * amount / 100)
    if count == 0:
        # rounded up, so that what the message names does buy a parameter
        least = Context(prec=2, rounding=ROUND_CEILING).divide(Decimal(100), Decimal(total))
        raise ConfigError(
            f"select.budget is {budget!r}, which is 0 of the model's {total:,} parameters; "
            f'the smallest percent is "{least:f}%".'
        )
    return count


def solve(
    model: Backbone, table: Mapping[str, Selector], name: str, options: dict[str, object], limit: int
) -> dict[str, object]:
    """Returns a selector's options with the largest value of its knob, if it has one, within a budget.

    Raises:
        ConfigError: the knob is given too, other options don't fit the model, or even the smallest size is too large.
    """
    row = table[name]
    knob = row.knob
    if knob is not None and options.get(knob) is not None:
        raise ConfigError(f"select.budget and select.{knob} both set the size of {name}; give one of them.")
    least: dict[str, dict[str, object]] = {n: {} if r.knob is None else {r.knob: 1} for n, r in table.items()}
    first = options | least[name]
    row.check(model, **first)
    smallest = row.size(model, **first)
    if smallest > limit:
        fitting = [other for other in table if other != name and _fits(model, table[other], least[other], limit)]
        what = f"always picks {smallest:,}" if knob is None else f"picks at least {smallest:,} (select.{knob}=1)"
        raise ConfigError(
            f"select.budget is {limit:,} parameters, but {name} {what} on {model.name}. "
            f"Methods that fit: {', '.join(fitting)}."
        )
    if knob is None:
        return options
    return {**options, knob: _largest(lambda value: _fits(model, row, {**options, knob: value}, limit))}


def select_within(
    model: Backbone, scores: Scores | None, row: Selector, options: dict[str, object], limit: int
) -> Selection:
    """Selects, with a smaller knob again and again while more than the budget is picked.

    Only SPT with `alpha` above 1 can pick more than its size says.

    Raises:
        ConfigError: the knob at 1 picks more than the budget.
    """
    selection = row.function(model, scores, **options)
    while (real := picked(model, selection)) > limit:
        value = options[row.knob]  # type: ignore[index]
        assert isinstance(value, int)
        if value == 1:
            raise ConfigError(f"select.budget is {limit:,} parameters, but select.{row.knob}=1 picks {real:,} already.")
        # the root: a full step would overshoot, as modules come and go at once
        smaller = int(value * (limit / real) ** 0.5)
        options = {**options, str(row.knob): max(1, min(value - 1, smaller))}
        selection = row.function(model, scores, **options)
    return selection


def picked(model: Backbone, selection: Selection) -> int:
    """Counts chosen entries, whole weights and position tables, and added parameters."""
    roles = model.roles()
    sizes = {name: p.numel() for name, p in model.net.named_parameters()}
    whole = sum(sizes[name] for name in selection.whole if roles[name] in ("linear", "conv", "position"))
    entries = sum(len(indices) for indices in selection.entries.values())
    return whole + entries + sum(added_size(model, addition) for addition in selection.additions)


def _largest(fits: Callable[[int], bool]) -> int:
    """Returns the largest value that fits, by doubling and bisection; 1 fits, and above some value none does."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(model: Backbone, row: Selector, options: dict[str, object], limit: int) -> bool:
    try:
        row.check(model, **options)
    except ConfigError:
        return False
    return row.size(model, **options) <= limit
