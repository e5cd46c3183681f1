"""Which options does a block `{name: ..., option: ...}` have? Those of the signature of the function that it names."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from samtune.config.problems import describe
from samtune.errors import did_you_mean, unknown_name


def option_problems(
    kind: str, name: str, options: Mapping[str, Any], table: Mapping[str, Callable[..., Any]]
) -> list[tuple[str, str]]:
    """Checks the options of a `{name: ..., option: ...}` block against its function.

    Options are the function's keyword-only parameters, checked by their annotations. A plain `int` is a
    count, so at least 1; annotate with bounds, as in `Annotated[int, Field(ge=0)]`, where that is wrong.

    Returns:
        (key, message) of each problem; empty when all fits.
    """
    if name not in table:
        return [("name", unknown_name(kind, name, table))]
    model = _options_model(table[name])
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        return [_option_problem(kind, name, dict(item), list(model.model_fields)) for item in error.errors()]
    return []


def default_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the options of a function that have a default, with it."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


@cache
def _options_model(function: Callable[..., Any]) -> type[BaseModel]:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    # Only these annotations are evaluated: those of model and scores may exist for type checkers alone.
    written = SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    hints = get_type_hints(written, globalns=vars(sys.modules[function.__module__]), include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in parameters:
        hint = Any if parameter.annotation is parameter.empty else hints[parameter.name]
        hint = Annotated[int, Field(ge=1)] if hint is int else hint
        fields[parameter.name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def _option_problem(kind: str, name: str, item: dict[str, Any], known: list[str]) -> tuple[str, str]:
    key = str(item["loc"][0])
    if item["type"] != "extra_forbidden":
        return key, describe(item)
    hint = did_you_mean(key, known)
    block = "{name: " + name + "}"
    has = f"has {', '.join(known)}" if known else f"has none; replace the whole block: 'select={block}'"
    return key, f"unknown option.{hint} The {kind} {name!r} {has}."
