"""Reads YAML into typed settings, with every mistake reported at once.

Unknown keys are errors, types are strict (`true` is no number), and the `select` block is checked against the signature
of the selector that it names. The kinds of jobs and the selectors come as tables, so this folder knows none of them.

A section whose values don't all fit is checked again without those that are wrong, until nothing new shows: one
mistake hides no other.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from samtune.base.paths import find_config
from samtune.config.problems import Problems, choice_text, shown
from samtune.config.sections import SELECTORS, Config, SelectorFacts
from samtune.config.yaml_text import YamlText, parse_yaml
from samtune.errors import ConfigError

Read = TypeVar("Read", bound=BaseModel)

LARGEST_FILE = 500_000  # bytes; reading so much takes seconds


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
    found = _checked(model, values, problems, dict(context or {}))
    if found is None or problems:
        raise problems.error()
    return found


def _checked(model: type[Read], values: dict[str, Any], problems: Problems, context: dict[str, Any]) -> Read | None:
    """Returns the settings; adds to the problems what is wrong, also what another mistake hides at first."""
    while True:
        try:
            return model.model_validate(values, context=context)
        except ValidationError as error:
            wrong = problems.add_validation(error)
        if not wrong:
            return None
        for keys in wrong:
            values = problems.mended(values, keys)


def _read_document(file: Path) -> YamlText:
    try:
        if file.stat().st_size > LARGEST_FILE:
            size = f"{file.stat().st_size / 1e6:.1f} MB"
            raise ConfigError(
                f"{file.name}: {size}, but a config has at most {LARGEST_FILE / 1e6:g}. Name a YAML file."
            )
        return parse_yaml(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file.name}{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file.name}: not readable as YAML in UTF-8: {reason}") from error
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
        problems.add(keys, f"{shown(value)} is not valid YAML; quote it.", "override")
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
