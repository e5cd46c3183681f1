"""Turns what is wrong with a config into one message: place, key, value, expectation, nearest valid key.

What options a block `{name: ..., option: ...}` has, the signature of the function that it names says.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from samtune.errors import ConfigError, did_you_mean, unknown_name

KeyPath = tuple[str, ...]

_EXPECTED = {
    "greater_than_equal": "a value >= {ge}",
    "greater_than": "a value > {gt}",
    "less_than_equal": "a value <= {le}",
    "less_than": "a value < {lt}",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_type": "a path",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "literal_error": "{expected}",
    "missing": "a value",
}


class Problems:
    """The problems of one config that must fit `model`, with the place of each: `lines` has the line of each key."""

    def __init__(self, model: type[BaseModel], file: str, lines: Mapping[KeyPath, int]) -> None:
        self._model = model
        self.file = file
        self._lines = lines
        self._overridden: set[KeyPath] = set()
        self._found: list[tuple[str, str]] = []  # (place, text)

    def __bool__(self) -> bool:
        return bool(self._found)

    def from_override(self, keys: KeyPath) -> None:
        """Notes that the value at `keys` came from the command line."""
        self._overridden.add(keys)

    def add(self, keys: KeyPath, text: str, place: str | None = None) -> None:
        """Adds one problem of the key at `keys`; () for the whole."""
        found = (place or self._place(keys), f"{'.'.join(keys)}: {text}" if keys else text)
        if found not in self._found:
            self._found.append(found)

    def add_validation(self, error: ValidationError) -> None:
        """Adds every problem that pydantic found."""
        for item in error.errors():
            keys = tuple(str(part) for part in item["loc"])
            context = item.get("ctx", {})
            if item["type"] == "options":
                for key, text in context["problems"]:
                    self.add((*keys, key), text)
            elif item["type"] == "pair":
                self.add((*keys, context["key"]), f"{_show(context['value'])}, expected {context['expected']}.")
            elif item["type"] == "extra_forbidden":
                self.add(keys, self.unknown_key(keys))
            else:
                self.add(keys, describe(dict(item)) + self._meaning(keys))

    def error(self) -> ConfigError:
        """Returns the error that tells all of them, in the order of the file, then those of the overrides."""
        width = max(len(place) for place, _ in self._found)
        found = sorted(self._found, key=lambda item: _order(item[0]))
        rows = [f"  {place:<{width}}  {text}" for place, text in found]
        count = "1 problem" if len(rows) == 1 else f"{len(rows)} problems"
        return ConfigError("\n".join([f"config {self.file!r} has {count}:", *rows]))

    def _place(self, keys: KeyPath) -> str:
        for end in range(len(keys), 0, -1):
            if keys[:end] in self._overridden:
                return "override"
            if keys[:end] in self._lines:
                return f"{self.file}:{self._lines[keys[:end]]}"
        return self.file

    def unknown_key(self, keys: KeyPath) -> str:
        """Returns what to say of a key that no section has: a near one, and those that there are."""
        section = _section(self._model, keys[:-1]) or self._model
        known = list(section.model_fields)
        near = get_close_matches(keys[-1], known, n=1)
        if not near:  # the right key in the wrong section
            near = [name for name in _all_keys(self._model) if name.split(".")[-1] == keys[-1]]
        hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        owner = ".".join(keys[:-1]) or "the file"
        return f"unknown key.{hint} Keys of {owner}: {', '.join(known)}."

    def _meaning(self, keys: KeyPath) -> str:
        section = _section(self._model, keys[:-1])
        field = section.model_fields.get(keys[-1]) if section and keys else None
        return f" ({field.description})" if field is not None and field.description else ""


def _order(place: str) -> tuple[bool, int]:
    line = place.rpartition(":")[2]
    return place == "override", int(line) if line.isdigit() else 0


def choice_text(value: object, names: Iterable[str]) -> str:
    """Words a value that is none of the names, as `describe` does for a closed choice."""
    shown = [repr(name) for name in names]
    expected = " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    return describe({"type": "literal_error", "input": value, "ctx": {"expected": expected}})


def describe(item: Mapping[str, Any]) -> str:
    """Words one entry of `ValidationError.errors()`, such as `0, expected a value >= 1.`, with the nearest choice."""
    kind, value = item["type"], item.get("input")
    context = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
    wording = _EXPECTED.get(kind)
    expected = wording.format(**context) if wording else item["msg"].removeprefix("Input should be ")
    if kind == "missing":
        return f"missing, expected {expected}."
    chosen = kind == "literal_error" and isinstance(value, str)
    hint = did_you_mean(str(value), re.findall("'(.*?)'", expected)) if chosen else ""
    return f"{_show(value)}, expected {expected}.{hint}"


def _section(model: type[BaseModel], keys: KeyPath) -> type[BaseModel] | None:
    for key in keys:
        field = model.model_fields.get(key)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in model.model_fields:
        section = _section(model, (name,))
        keys += _all_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys


def _show(value: Any) -> str:
    """A value as YAML would write it: true, null, "text"."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


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
