"""Every mistake of a config is told at once, each with its line; and no file, however odd, is a bug of ours."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from samtune.config import yaml_text
from samtune.config.problems import Problems
from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.sweep.settings import load_sweep

# Line by line: what is wrong there, as the message says it.
TYPOS = """\
run:
  name: a/b                      # run.name: "a/b", expected text that matches
  seed: true                     # run.seed: true, expected an integer.
  devise: cpu                    # run.devise: unknown key. Did you mean 'device'?
model:
  name: sam_light                # Did you mean 'sam_lite'?
  image_size: 1e300              # model.image_size: 1e+300, expected an integer.
data:
  dir: pictures
  split: ratio
  val: val.txt                   # data.val: "val.txt", expected no value with data.split: ratio
  test: test.txt                 # data.test: "test.txt", expected no value with data.split: ratio
  cache: yes                     # data.cache: "yes", expected true or false.
score: [1]                       # score: [1], expected a section with keys of its own.
select:
  per_neron: 2                   # select.per_neron: unknown option. Did you mean 'per_neuron'?
  budget: abc                    # select.budget: "abc", expected a number of parameters >= 1
tune:
  base: bf16                     # tune.base: "bf16", expected fp32 with train.precision: fp32
  exclude: block 0               # tune.exclude: "block 0", expected a list
train:
  epochs: 2.5                    # train.epochs: 2.5, expected an integer.
  lr: "1e-4"                     # train.lr: "1e-4", expected a number.
  batch: 4                       # train.batch: occurs twice (again in line 25). Keep one.
  batch: 8
  precision: fp32
  weight_decay: -1               # train.weight_decay: -1, expected a value >= 0.
  optimiser: adam                # train.optimiser: unknown key. Did you mean 'optimizer'?
  embeddings: cache
loss:
  dice_weight: 0
  bce_weight: 0                  # loss.bce_weight: 0, expected a value > 0 when loss.dice_weight is 0.
eval:
  split: tset                    # eval.split: "tset", expected 'test' or 'val'. Did you mean 'test'?
  metrics:
    - hd95
    - hd59                       # eval.metrics.1: unknown metric 'hd59'. Did you mean 'hd95'?
  overlays: -1                   # eval.overlays: -1, expected a value >= 0.
track: off                       # track: "off", expected a section with keys of its own. Keys of track: mlflow
trian: {lr: 1}                   # trian: unknown key. Did you mean 'train'?
"""
EXPECTED = {number: line.partition("# ")[2] for number, line in enumerate(TYPOS.splitlines(), start=1) if "# " in line}


def told(path: Path, *overrides: str) -> list[tuple[int, str]]:
    """The problems as (line, text); 0 for an override."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    found = [line.split(maxsplit=1) for line in str(caught.value).splitlines()[1:]]
    assert all(place == "override" or place.startswith(f"{path}:") for place, _ in found), found
    return [(int(place.removeprefix(f"{path}:")) if ":" in place else 0, text) for place, text in found]


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_24_typos_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    found = dict(told(write(tmp_path, TYPOS)))
    # the pair of augment and embeddings has no line of its own: it stands where its section does
    assert found.pop(8).startswith("data.augment: true, expected false with train.embeddings")
    assert len(EXPECTED) + 1 == 25
    assert {line: text for line, text in EXPECTED.items() if text not in found.get(line, "")} == {}
    assert found.keys() == EXPECTED.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a wrong neighbour hid these: they were checked only where all else in the section was right
        ("eval: {overlays: x, metrics: [hd59]}", ["eval.overlays", "eval.metrics.0: unknown metric 'hd59'"]),
        (
            "train: {accumulate: 0, min_lr: 1}",
            ["train.accumulate", "train.min_lr: 1.0, expected at most train.lr = 0.001."],
        ),
        ("train: {epocs: 1}\ntune: {base: bf16}\ntrack: 3", ["train.epocs", "track"]),
        (
            "run: {seed: x}\ntune: {base: bf16}\ntrain: {precision: fp32}",
            ["run.seed", 'tune.base: "bf16", expected fp32 with train.precision: fp32'],
        ),
        ("eval: {metrics: [hd59, 1, hd96]}", ["eval.metrics.0", "eval.metrics.1: 1, expected text.", "eval.metrics.2"]),
        # of a pair nothing is said while its other half is wrong, and nothing twice
        ("train: {lr: fast, min_lr: 1}", ['train.lr: "fast", expected a number.']),
        ("train: {lr: [1], lr: fast, min_lr: 1}", ["train.lr: occurs twice", 'train.lr: "fast"']),
        ("select: {name: gpss, per_neron: 1, tau: 3}", ["select.name: unknown selector 'gpss'. Did you mean 'gps'?"]),
        ("train: {embeddings: cache}\ndata: {dir: x, augment: 3}", ["data.augment: 3, expected true or false."]),
        ("data: 3\ntune: {base: bf16}\ntrain: {precision: fp32}", ["data: 3, expected a section", "tune.base"]),
        ("data:\ntune: {base: bf16}\ntrain: {precision: fp32}", ["data.dir: missing", "tune.base"]),
        # what only the model showed, or a crash
        ("select: {budget: abc}", ['select.budget: "abc", expected a number of parameters >= 1, such as 400000, or a']),
        ("select: {budget: 0%}", ['select.budget: "0%", expected a number']),
        ("select: {budget: [1]}", ["select.budget: [1], expected a number"]),
        ("select: {budget: 0.5}", ["select.budget: 0.5, expected a number"]),
        ("train: {lr: 1e300}", ["train.lr: 1e+300, expected a value <= 1e+30. (peak learning rate)"]),
        ("train: {weight_decay: 1e300}", ["train.weight_decay: 1e+300, expected a value <= 1e+06."]),
        ("train: {epochs: " + "9" * 5000 + "}", ['train.epochs: "9999']),
        ("model: {image_size: 1000000}", ["model.image_size: 1000000, expected a value <= 4096."]),
        # and what to write instead
        ("select: full", ["Did you mean 'select: {name: full}'?"]),
        ("train: fast", ["Keys of train: epochs, steps, lr"]),
    ],
)
def test_no_mistake_hides_another_and_none_is_told_for_nothing(text: str, expected: list[str], tmp_path: Path) -> None:
    found = told(write(tmp_path, text if "data:" in text else f"data: {{dir: x}}\n{text}"))
    missing = [part for part in expected if not any(part in message for _, message in found)]
    assert (missing, len(found)) == ([], len(expected)), found


class Either(BaseModel):
    """A value of several types."""

    many: int | Literal["auto"]


def test_a_value_of_several_types_is_told_once() -> None:
    problems = Problems(Either, "f", {("many",): 3})
    with pytest.raises(ValidationError) as caught:
        Either.model_validate({"many": "autp"}, strict=True)
    assert problems.add_validation(caught.value) == ["many"]
    assert str(problems.error()).splitlines()[1:] == [
        "  f:3  many: \"autp\", expected an integer or 'auto'. Did you mean 'auto'?"
    ]


def test_an_override_gets_the_hint_in_its_own_form(tmp_path: Path) -> None:
    ((line, message),) = told(write(tmp_path, "data: {dir: x}"), "select=full")
    assert line == 0
    assert message.endswith("Did you mean 'select={name: full}'?")


def test_the_line_of_a_pair_is_that_of_its_key(tmp_path: Path) -> None:
    ((line, message),) = told(write(tmp_path, "data: {dir: x}\ntrain: {precision: fp32}\ntune:\n\n  base: bf16\n"))
    assert (line, message.partition(":")[0]) == (5, "tune.base")


def test_a_sweep_tells_all_of_its_own_too(tmp_path: Path) -> None:
    text = "name: s\nconfig: polyp.yaml\njobs: 0\nseeds: [1, 1]\ncells: {}\ngrid: {train.lr: []}\n"
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, text))
    lines = [re.sub(r"^.*job.yaml:", "", line) for line in str(caught.value).splitlines()[1:]]
    assert [line.split()[:2] for line in lines] == [
        ["3", "jobs:"],
        ["4", "seeds:"],
        ["5", "cells:"],
        ["6", "grid.train.lr:"],
    ]


def bomb(levels: int) -> str:
    """Each block has nine of the one before: 9 ** levels values."""
    blocks = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]", *blocks])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bomb(12), r"job\.yaml:\d+: not valid YAML: more than 5,000 values"),
        ("a: " + "[" * 5000, "not valid YAML: blocks or lists are nested more than 30 deep"),
        ("a: " + "[" * 40 + "]" * 40, r"job\.yaml:1: not valid YAML: blocks or lists are nested more than 30 deep"),
        ("a: " + "{a: " * 5000, "not valid YAML: blocks or lists are nested more than 30 deep"),
        ("train: {epochs: !!int twelve}", r"job\.yaml:1: not valid YAML: 'twelve' is no int"),
        ("train: {cache: !!bool maybe}", r"job\.yaml:1: not valid YAML: 'maybe' is no bool"),
        ("a: \x00", "not readable as YAML in UTF-8: unacceptable character"),
        ("a: 1\n" * 100_001, r"job\.yaml: 0\.5 MB, but a config has at most 0\.5"),
    ],
    ids=["bomb", "brackets", "closed brackets", "braces", "no int", "no bool", "control character", "long"],
)
def test_a_file_that_attacks_the_reader(text: str, expected: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(write(tmp_path, text))
    assert time.monotonic() - start < 10
    assert len(str(caught.value).splitlines()) == 1


def test_an_override_that_attacks_the_reader(tmp_path: Path) -> None:
    ((_, message),) = told(write(tmp_path, "data: {dir: x}"), "train.lr=" + "[" * 5000)
    assert message.startswith("train.lr: ") and message.endswith("is not valid YAML; quote it.")
    assert len(message) < 120


def test_as_many_values_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MOST_VALUES", 10)
    values: dict[str, Any] = {"a": list(range(9))}
    assert yaml_text.parse_yaml(yaml.safe_dump(values)).value == values
    with pytest.raises(yaml.YAMLError, match="more than 10 values"):
        yaml_text.parse_yaml(yaml.safe_dump(values | {"b": 1}))
