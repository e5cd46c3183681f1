"""Turns what is wrong with a config into one message: place, key, value, expectation, nearest valid key."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from samtune.errors import ConfigError, did_you_mean

KeyPath = tuple[str, ...]


class Fault(NamedTuple):
    """What a section says of values that don't fit; keys count from there, with dots.

    `beside` are keys whose values the fault is about too: while one of these is wrong itself, there is nothing to say.
    """

    key: str
    text: str
    beside: tuple[str, ...] = ()


def impossible_pair(key: str, value: object, expected: str, *beside: str) -> Fault:
    """The fault of a value that others, at the keys `beside`, rule out."""
    return Fault(key, f"{shown(value)}, expected {expected}.", beside)


def faults_error(faults: Iterable[Fault]) -> PydanticCustomError:
    """The error with which a validator tells the faults of its section."""
    return PydanticCustomError("faults", "values do not fit", {"faults": list(faults)})


def told(text: str) -> PydanticCustomError:
    """The error of a validator that words the whole message of its value itself."""
    return PydanticCustomError("told", "{text}", {"text": text})


_SECTION_TYPES = ("model_type", "model_attributes_type")
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
    **dict.fromkeys(_SECTION_TYPES, "a section with keys of its own"),
    "literal_error": "{expected}",
    "missing": "a value",
}


class Problems:
    """The problems of one config that must fit `model`, with the place of each: `lines` has the line of each key."""

    def __init__(self, model: type[BaseModel], file: str, lines: Mapping[KeyPath, int]) -> None:
        self._model = model
        self.file = file
        self._lines = {".".join(keys): line for keys, line in lines.items()}
        self._overridden: set[str] = set()
        self._found: list[tuple[str, str]] = []  # (place, text)
        self._wrong: set[str] = set()  # keys
        self._mended: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def from_override(self, keys: KeyPath) -> None:
        """Notes that the value at `keys` came from the command line."""
        self._overridden.add(".".join(keys))

    def add(self, keys: KeyPath, text: str, place: str | None = None) -> None:
        """Adds one problem of the key at `keys`; () for the whole."""
        key = ".".join(keys)
        found = (place or self._place(key), f"{key}: {text}" if keys else text)
        if found not in self._found:
            self._found.append(found)
        self._wrong |= {key} - {""}

    def add_validation(self, error: ValidationError) -> list[str]:
        """Adds every problem that pydantic found; returns their keys, but for those that were `mended`."""
        known, keys_found = set(self._wrong), []
        items: dict[KeyPath, list[dict[str, Any]]] = {}
        for item in error.errors():
            items.setdefault(self._keys(item["loc"]), []).append(dict(item))
        for place, told_there in items.items():
            for keys, text, beside in self._problems(place, told_there):
                key = ".".join(keys)
                if key in self._mended:
                    continue
                keys_found.append(key)
                if not any(_touch(other, wrong) for other in beside for wrong in known):
                    self.add(keys, text)
        return keys_found

    def mended(self, values: dict[str, Any], key: str) -> dict[str, Any]:
        """Returns the values without a wrong one, or with a stand-in where there must be one."""
        self._mended.add(key)
        *owners, name = key.split(".")
        owner = _section(self._model, tuple(owners))
        field = owner.model_fields.get(name) if owner else None
        if field is None or not field.is_required():
            return _with(values, key, None)
        section = _section(self._model, (*owners, name))
        return _with(values, key, section.model_construct() if section else "text")

    def _keys(self, place: tuple[int | str, ...]) -> KeyPath:
        """Returns the keys of a place as pydantic names it: with the type, where a value may have one of several."""
        keys = tuple(str(part) for part in place)
        owner = _section(self._model, keys[:-2])
        is_value = owner is not None and keys[-2:-1] and keys[-2] in owner.model_fields
        named = is_value and isinstance(place[-1], str) and not _section(self._model, keys[:-1])
        return keys[:-1] if named else keys

    def _problems(self, keys: KeyPath, items: list[dict[str, Any]]) -> Iterator[tuple[KeyPath, str, list[str]]]:
        """Yields keys, text and keys beside of what the entries of `ValidationError.errors()` at one place tell."""
        kind = items[0]["type"]
        if kind == "faults":
            for key, text, beside in items[0]["ctx"]["faults"]:
                yield (*keys, key), text, [".".join((*keys, other)) for other in beside]
        elif kind == "extra_forbidden":
            yield keys, self.unknown_key(keys), []
        else:
            yield keys, describe(*items) + self._hint(keys, items[0]) + self._meaning(keys), []

    def error(self) -> ConfigError:
        """Returns the error that tells all of them, in the order of the file, then those of the overrides."""
        width = max(len(place) for place, _ in self._found)
        found = sorted(self._found, key=lambda item: _order(item[0]))
        rows = [f"  {place:<{width}}  {text}" for place, text in found]
        count = "1 problem" if len(rows) == 1 else f"{len(rows)} problems"
        return ConfigError("\n".join([f"config {self.file!r} has {count}:", *rows]))

    def _place(self, key: str) -> str:
        while key:
            if key in self._overridden:
                return "override"
            if key in self._lines:
                return f"{self.file}:{self._lines[key]}"
            key = key.rpartition(".")[0]
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

    def _hint(self, keys: KeyPath, item: Mapping[str, Any]) -> str:
        """Returns what to write for text in place of a section with a name, such as `select=full`."""
        section, value = _section(self._model, keys), item.get("input")
        if item["type"] not in _SECTION_TYPES or not isinstance(value, str) or not section:
            return ""
        block, key = "{name: " + value + "}", ".".join(keys)
        if "name" not in section.model_fields:
            return f" Keys of {key}: {', '.join(section.model_fields)}."
        return f" Did you mean '{key}={block}'?" if key in self._overridden else f" Did you mean '{key}: {block}'?"

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


def describe(*items: Mapping[str, Any]) -> str:
    """Words the entries of `ValidationError.errors()` on one value, such as `0, expected a value >= 1 or 'auto'.`.

    The nearest choice is named, if there is one.
    """
    kinds, value = [item["type"] for item in items], items[0].get("input")
    if "told" in kinds:
        return str(items[0]["ctx"]["text"])
    expected = " or ".join(map(_expectation, items))
    if "missing" in kinds:
        return f"missing, expected {expected}."
    chosen = "literal_error" in kinds and isinstance(value, str)
    hint = did_you_mean(str(value), re.findall("'(.*?)'", expected)) if chosen else ""
    return f"{shown(value)}, expected {expected}.{hint}"


def _expectation(item: Mapping[str, Any]) -> str:
    context = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
    wording = _EXPECTED.get(item["type"])
    return wording.format(**context) if wording else str(item["msg"]).removeprefix("Input should be ")


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


def shown(value: Any) -> str:
    """Returns a value as YAML would write it, cut at 60 characters: true, null, "text"."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _touch(one: str, other: str) -> bool:
    """Tells whether two keys are the same, or one stands in the section of the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _with(values: Mapping[str, Any] | None, key: str, value: object) -> dict[str, Any]:
    """Returns a copy of nested values with `value` at a key with dots, or without the key where it is None."""
    kept = {name: old for name, old in (values or {}).items() if name != key}
    if value is not None and "." not in key:
        return {**kept, key: value}
    for name, old in kept.items():
        if key.startswith(f"{name}."):
            if old is None or isinstance(old, dict):
                return {**kept, name: _with(old, key.removeprefix(f"{name}."), value)}
            return {other: value for other, value in kept.items() if other != name}  # an entry of a list: all of it
    return kept
