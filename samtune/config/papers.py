"""What the papers used and published, read from `papers.yaml`: data sets, settings per data set, accuracies.

Two kinds of mean are about: GPS and GRFT average VTAB over its 19 tasks, SPT over its three groups (Natural,
Specialized, Structured), which gives about two points more. Never put the one beside the other.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from samtune.errors import ConfigError, unknown_name

RECIPES = ("gps", "grft", "spt")
GROUPS = ("Natural", "Specialized", "Structured", "FGVC", "General")  # the first three are VTAB


@dataclass(frozen=True)
class DatasetFacts:
    """One data set: its name such as `vtab/kitti`, title, group of `GROUPS`, how many classes and test images it has.

    What stands behind the slash of the name is its folder.
    """

    name: str
    title: str
    group: str
    classes: int
    test: int


@dataclass(frozen=True)
class PublishedRow:
    """One method in one table of a paper.

    Attributes:
        title: the method, as the paper calls it; `*` marks numbers of a re-run by others.
        key: the method here, a name of `select` or `spt_lora`, `spt_adapter`, `noah`; several rows may share one.
        values: top-1 accuracy in percent by data set (or by group of VTAB, in tables of groups). What is not
            printed is not in it. `imagenet-c` is an error instead: less is better.
        mean: as printed; over tasks in GPS and GRFT, over groups of VTAB in SPT; None if not printed.
        percent: trainable parameters, in percent of all; None if not printed.
    """

    paper: str
    table: str
    title: str
    key: str
    values: dict[str, float]
    mean: float | None
    percent: float | None


def datasets() -> dict[str, DatasetFacts]:
    """Returns all data sets by name, in the order of the papers' tables."""
    return {
        name: DatasetFacts(name, facts["title"], facts["group"], facts["classes"], facts["test"])
        for name, facts in _content()["datasets"].items()
    }


def hyperparameters(recipe: str, dataset: str | None) -> dict[str, Any]:
    """Returns what a paper used, as nested values of the config.

    Args:
        dataset: name in `datasets`; the values that the paper gives for it, if any, go over the recipe's.

    Raises:
        ConfigError: unknown recipe or data set.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe: {unknown_name('recipe', recipe, RECIPES)}")
    own = {} if dataset is None else _facts(dataset).get(recipe, {})
    return _over(_content()["recipes"][recipe], own)


def published(benchmark: str, backbone: str = "vit_base") -> list[PublishedRow]:
    """Returns the published rows of a benchmark in the order of the file.

    Args:
        benchmark: vtab (tasks), vtab_groups (SPT's means of groups), fgvc, cifar-100, imagenet, robustness, or the
            ablations vtab_ablation and fgvc_ablation.
        backbone: vit_base, vit_base_mae, vit_base_moco_v3, swin_base or convnext_base.

    Raises:
        ConfigError: unknown benchmark, or no table of it with this backbone.
    """
    content = _content()
    tables = [table for table in content["published"] if table["benchmark"] == benchmark]
    if not tables:
        raise ConfigError(unknown_name("benchmark", benchmark, {t["benchmark"] for t in content["published"]}))
    found = [table for table in tables if table["backbone"] == backbone]
    if not found:
        raise ConfigError(f"{benchmark}: {unknown_name('backbone', backbone, {t['backbone'] for t in tables})}")
    return [_row(table, row, content["columns"][table["columns"]]) for table in found for row in table["rows"]]


def _row(table: Mapping[str, Any], row: Mapping[str, Any], columns: list[str]) -> PublishedRow:
    pairs = zip(columns, row["accuracy"], strict=True)
    values = {column: float(value) for column, value in pairs if value is not None}
    title, key, mean, percent = (row[name] for name in ("title", "key", "mean", "percent"))
    return PublishedRow(table["paper"], table["table"], title, key, values, mean, percent)


def _facts(dataset: str) -> dict[str, Any]:
    known = _content()["datasets"]
    if dataset not in known:
        raise ConfigError(f"data.name: {unknown_name('data set', dataset, known)}")
    facts: dict[str, Any] = known[dataset]
    return facts


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested values where those of `above` win, key by key."""
    merged = deepcopy(dict(below))
    for key, value in above.items():
        both_nest = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if both_nest else deepcopy(value)
    return merged


@cache
def _content() -> dict[str, Any]:
    """Reads the file, once; nobody changes the result."""
    text = Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
