"""Reads YAML into typed settings, with every mistake reported at once.

Unknown keys are errors, types are strict (`true` is no number), and the `select` block is checked against the signature
of the selector that it names. The kinds of jobs and the selectors come as tables, so this folder knows none of them.

Scalars follow YAML 1.2 (core schema), not PyYAML's 1.1: `1e-4` is a number, `yes`, `off` and `12:30` are text, and only
`true` and `false` are bools. A key that occurs twice in one block is a problem, not a silent overwrite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from samtune.base.paths import find_config
from samtune.config.problems import KeyPath, Problems, choice_text
from samtune.config.sections import SELECTORS, Config, SelectorFacts
from samtune.errors import ConfigError

Read = TypeVar("Read", bound=BaseModel)


class TaskRow(Protocol):
    """What this module asks of a row of the table of tasks."""

    def settings(self) -> type[Config]:
        """Returns the class of the task's settings."""


Tasks = Mapping[str, TaskRow]


def read_config(
    path: str | Path, overrides: Sequence[str] = (), *, tasks: Tasks, selectors: Mapping[str, SelectorFacts]
) -> Config:
    """Reads a config file, applies overrides and checks everything.

    Args:
        path: a YAML file, found by `find_config`.
        overrides: `section.key=value` each, with the value as YAML; later ones win. `select={name: linear}`
            replaces a whole block.
        tasks: the kinds of jobs by name; the first is meant where a file names none.

    Returns:
        The config with all defaults filled in, of the class that its task names.

    Raises:
        ConfigError: no such file, or all problems of file and overrides in one message.
    """
    document = _read_document(find_config(path))
    task = _task_of(document.value, overrides)
    name = task if isinstance(task, str) and task in tasks else next(iter(tasks))
    model = tasks[name].settings()

    def fill(values: dict[str, Any], problems: Problems) -> None:
        if "task" in values and values["task"] not in tasks:
            problems.add(("task",), choice_text(values["task"], tasks))
            values["task"] = name
        model.complete(values, selectors)
        values.setdefault("select", {})  # so that it is checked where the file says nothing, too

    problems = Problems(model, str(path), document.lines)
    return _validated(model, document, overrides, problems, fill=fill, context={SELECTORS: selectors})


def read_model(model: type[Read], path: str | Path, overrides: Sequence[str], problems_class: type[Problems]) -> Read:
    """Reads a YAML file into a pydantic model, all problems at once; arguments and errors as of `read_config`."""
    document = _read_document(find_config(path))
    return _validated(model, document, overrides, problems_class(model, str(path), document.lines))


def _task_of(values: Any, overrides: Sequence[str]) -> object:
    """Returns what file and overrides say of `task`; None where they say nothing."""
    task = values.get("task") if isinstance(values, dict) else None
    for text in overrides:
        key, _, value = text.partition("=")
        task = value.strip("'\" ") if key.strip() == "task" else task
    return task if isinstance(task, str) else None


def _validated(
    model: type[Read],
    document: YamlText,
    overrides: Sequence[str],
    problems: Problems,
    *,
    fill: Callable[[dict[str, Any], Problems], None] = lambda values, problems: None,
    context: Mapping[str, Any] | None = None,
) -> Read:
    """Checks a document with its overrides; `fill` may add to the values, and to the problems, before that."""
    for keys, line in document.duplicates:
        problems.add(keys, f"occurs twice (again in line {line}). Keep one.")
    values = document.value if document.value is not None else {}
    if not isinstance(values, dict):
        known = ", ".join(f"`{name}:`" for name in list(model.model_fields)[:3])
        raise ConfigError(f"{problems.file}: expected sections such as {known}, found {type(values).__name__}.")
    for text in overrides:
        _apply_override(values, text, problems)
    fill(values, problems)
    try:
        found = model.model_validate(values, context=dict(context or {}))
    except ValidationError as error:
        problems.add_validation(error)
        raise problems.error() from None
    if problems:
        raise problems.error()
    return found


def _read_document(file: Path) -> YamlText:
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file.name}{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.name}: not readable as YAML in UTF-8: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file.name}: can't be read: {error.strerror}.") from error


def _apply_override(values: dict[str, Any], text: str, problems: Problems) -> None:
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        problems.add((), f"{text!r} is not of the form section.key=value, such as train.lr=1e-4.", "override")
        return
    try:
        parsed = parse_yaml(value).value
    except yaml.YAMLError:
        problems.add(keys, f"{value!r} is not valid YAML; quote it.", "override")
        return
    block = values
    for depth, part in enumerate(keys[:-1], start=1):
        if block.get(part) is None:
            block[part] = {}
        block = block[part]
        if not isinstance(block, dict):
            problems.add(keys, f"{'.'.join(keys[:depth])} has no keys of its own.", "override")
            return
    block[keys[-1]] = parsed
    problems.from_override(keys)


@dataclass(frozen=True)
class YamlText:
    """A document as dicts with text keys, lists and scalars, or None when it is empty.

    `lines` has the line (from 1) of each key by its path, `duplicates` every repeated key in file order.
    """

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[tuple[KeyPath, int]] = field(default_factory=list)


def parse_yaml(text: str) -> YamlText:
    """Parses one YAML document without any tag.

    Raises:
        yaml.YAMLError: text that is no YAML, several documents, or a block that contains itself.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        parsed = YamlText(None)
        value = None if node is None else _value(loader, node, (), parsed, frozenset())
        return YamlText(value, parsed.lines, parsed.duplicates)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader with the implicit types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)


_CORE = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _value(loader: _Loader, node: yaml.Node, path: KeyPath, out: YamlText, parents: frozenset[int]) -> Any:
    if id(node) in parents:
        raise yaml.MarkedYAMLError(problem="a block contains itself", problem_mark=node.start_mark)
    if node.tag.removeprefix(_CORE) not in {*_SCALARS, "str", "seq", "map"}:
        raise yaml.MarkedYAMLError(problem=f"tag {node.tag!r} is not allowed", problem_mark=node.start_mark)
    parents = parents | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, n, (*path, str(i)), out, parents) for i, n in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[str, Any] = {}
    for key, line, child in _items(node):
        here = (*path, key)
        if key in mapping:
            out.duplicates.append((here, line))
        out.lines.setdefault(here, line)
        mapping[key] = _value(loader, child, here, out, parents)
    return mapping


def _items(node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
        yield key.value, key.start_mark.line + 1, child
