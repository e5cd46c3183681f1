"""The settings of a run: typed sections, read from YAML, with every mistake reported at once.

`load_config` is the way in. Unknown keys are errors, types are strict (`true` is no number), and the `select`
block is checked against the signature of the selector that it names. Importing this module imports neither
torch nor mlflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from samtune.base.paths import find_config
from samtune.config.problems import Problems
from samtune.config.sections import Config as Config
from samtune.config.yamltext import YamlText, parse_yaml
from samtune.errors import ConfigError
from samtune.tasks.classes.config import ClassificationConfig, fill_from_recipe
from samtune.tasks.masks.config import SegmentationConfig

Read = TypeVar("Read", bound=BaseModel)


CONFIGS: dict[str, type[Config]] = {"segmentation": SegmentationConfig, "classification": ClassificationConfig}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file, applies overrides and checks everything.

    Args:
        path: a YAML file; a relative path is tried in the working folder, then in the project root, then in
            `configs/` of both.
        overrides: `section.key=value` each, with the value as YAML; later ones win. `select={name: linear}`
            replaces a whole block.

    Returns:
        The checked config with all defaults filled in: a `SegmentationConfig` or a `ClassificationConfig`, by `task`.

    Raises:
        ConfigError: no such file, or all problems of file and overrides in one message: place, key, value,
            expectation and nearest valid key.
    """
    values = _read_document(find_config(path)).value
    task = values.get("task") if isinstance(values, dict) else None
    for text in overrides:
        key, _, value = text.partition("=")
        task = value.strip("'\" ") if key.strip() == "task" else task
    found = CONFIGS.get(str(task), SegmentationConfig)  # whose own check refuses an unknown task
    return read_model(found, path, overrides, Problems, fill=fill_from_recipe)


def read_model(
    model: type[Read],
    path: str | Path,
    overrides: Sequence[str],
    problems_class: type[Problems],
    *,
    fill: Callable[[dict[str, Any]], None] | None = None,
) -> Read:
    """Reads a YAML file into a pydantic model, all problems at once; arguments and errors as of `load_config`.

    `fill` may add to the values of file and overrides before they are checked.
    """
    document = _read_document(find_config(path))
    problems = problems_class(model, str(path), document.lines)
    for keys, line in document.duplicates:
        problems.add(keys, f"occurs twice (again in line {line}). Keep one.")
    values = document.value if document.value is not None else {}
    if not isinstance(values, dict):
        known = ", ".join(f"`{name}:`" for name in list(model.model_fields)[:3])
        raise ConfigError(f"{path}: expected sections such as {known}, found {type(values).__name__}.")
    for text in overrides:
        _apply_override(values, text, problems)
    if fill is not None:
        fill(values)
    try:
        found = model.model_validate(values)
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
        child = block.setdefault(part, {})
        if child is None:
            child = block[part] = {}
        if not isinstance(child, dict):
            problems.add(keys, f"{'.'.join(keys[:depth])} has no keys of its own.", "override")
            return
        block = child
    block[keys[-1]] = parsed
    problems.from_override(keys)
