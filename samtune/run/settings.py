"""Which settings does a run have, and what follows from them alone?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samtune.config.load import read_config
from samtune.config.sections import Config
from samtune.errors import ConfigError
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
    """Returns the scoring pass that the config's selector needs, with the loss that the config asks for.

    Raises:
        ConfigError: a loss, or a choice of images by it, for a pass that has none.
    """
    if config.select.file is not None:
        return None
    needs, score = SELECTORS[config.select.name].needs(**config.select.options), config.score
    if needs is None or needs.of == "gradients":
        return needs if needs is None or score.kind is None else replace(needs, loss=score.kind)
    wrong = ["score.loss"] * (score.loss is not None) + ["score.subsets"] * (score.subsets > 1)
    if wrong:
        raise ConfigError(
            f"{' and '.join(wrong)} can't be used here: this criterion of select.name={config.select.name} scores by "
            "forward passes, without a loss. Leave it out, or choose a criterion that reads gradients."
        )
    return needs
