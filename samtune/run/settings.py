"""Which settings does a run have, and what follows from them alone?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samtune.config.load import read_config
from samtune.config.sections import Config
from samtune.selection import SELECTORS, Needs
from samtune.tasks.table import TASKS


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked config of a file with overrides, all defaults filled in, of the class that its `task` names.

    Args:
        path: a YAML file; relative: in the working folder, else in the project root, else in `configs/` of both.
        overrides: `section.key=value`, the value as YAML; later ones win. `select={name: linear}` replaces a block.

    Raises:
        ConfigError: no such file, or all problems in one message: place, key, value, expectation, nearest valid key.
    """
    return read_config(path, overrides, tasks=TASKS, selectors=SELECTORS)


def needs_of(config: Config) -> Needs | None:
    """Returns the scoring pass that the config's selector needs, with the loss that the config asks for."""
    if config.select.file is not None:
        return None
    needs, kind = SELECTORS[config.select.name].needs(**config.select.options), config.score.kind
    return needs if needs is None or kind is None else replace(needs, loss=kind)
