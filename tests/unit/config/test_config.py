from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from samtune.base.paths import find_config, find_path
from samtune.config.options import option_problems
from samtune.config.sections import Config
from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.tasks.table import TASKS

MINIMAL = "data:\n  dir: pictures\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_fill_what_is_not_written(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL))
    assert config.data.dir == Path("pictures")
    assert (config.model.name, config.select.name, config.train.epochs) == ("sam_lite", "gps", 20)
    assert config.select.options["per_neuron"] == 1


def test_an_empty_section_is_its_defaults(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL + "train:\n  # lr: 1e-3\n"))
    assert config.train == load_config(write(MINIMAL)).train


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.5e-3", 1.5e-3), ("3E2", 300.0), ("1", 1.0), (".5", 0.5), ("+1.", 1.0), ("0.01", 0.01)],
)
def test_numbers_as_people_write_them(write: Callable[[str], Path], text: str, value: float) -> None:
    assert load_config(write(MINIMAL + f"train: {{lr: {text}}}")).train.lr == value
    assert load_config(write(MINIMAL), [f"train.lr={text}"]).train.lr == value


def test_to_yaml_reads_back_as_the_same_config(write: Callable[[str], Path]) -> None:
    changes = [
        "select={name: gps, per_neuron: 5}",
        "eval.metrics=[hd95]",
        "model.checkpoint=a b/ü.pth",
        "train.clip=null",
    ]
    config = load_config(write(MINIMAL), changes)
    again = load_config(write(config.to_yaml()))
    assert again == config
    assert again.select.options["per_neuron"] == 5
    assert again.eval.metrics == ("hd95",)


def test_a_config_can_not_be_changed(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL))
    with pytest.raises(ValidationError):
        config.train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("config", [entry.settings() for entry in TASKS.values()])
def test_every_key_says_what_it_is(config: type[Config]) -> None:
    sections = [f.annotation for f in config.model_fields.values() if hasattr(f.annotation, "model_fields")]
    assert len(sections) == 10
    fields = [field for section in sections for field in section.model_fields.values()]  # type: ignore[union-attr]
    assert all(field.description for field in fields)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {epocs: 3}", "train.epocs: unknown key. Did you mean 'epochs'?"),
        ("train: {seed: 3}", "train.seed: unknown key. Did you mean 'run.seed'?"),
        ("trian: {lr: 1}", "trian: unknown key. Did you mean 'train'?"),
        ("lr: 1", "lr: unknown key. Did you mean 'train.lr'?"),
        ("model: {zzz: 1}", "model.zzz: unknown key. Keys of model: name, checkpoint, image_size, channels."),
        ("train: {epochs: true}", "train.epochs: true, expected an integer."),
        ("train: {epochs: 0}", "train.epochs: 0, expected a value >= 1. (passes over the training images)"),
        ("train: {epochs: 2.5}", "train.epochs: 2.5, expected an integer."),
        ('train: {epochs: "3"}', 'train.epochs: "3", expected an integer.'),
        ("train: {epochs: 010}", 'train.epochs: "010", expected an integer.'),
        ("train: {lr: true}", "train.lr: true, expected a number."),
        ("train: {lr: fast}", 'train.lr: "fast", expected a number.'),
        ("train: {lr: .inf}", "expected a finite number."),
        ("train: {lr: .nan}", "train.lr: NaN, expected"),
        ("train: {lr: -1}", "train.lr: -1, expected a value > 0."),
        ("train: {warmup: 2}", "train.warmup: 2, expected a value <= 1."),
        ("train: {checkpointing: yes}", 'train.checkpointing: "yes", expected true or false.'),
        ("train: {checkpointing: 1}", "train.checkpointing: 1, expected true or false."),
        ("train: {optimizer: adamv}", "expected 'adam' or 'adamw'. Did you mean 'adam'?"),
        ("train: 3", "train: 3, expected a section with keys of its own."),
        ("train: {min_lr: 1}", "train.min_lr: 1.0, expected at most train.lr = 0.001."),
        ("loss: {dice_weight: 0, bce_weight: 0}", "loss.bce_weight: 0, expected a value > 0 when"),
        ("model: {name: sam_vit_x}", "Did you mean 'sam_vit_"),
        ("model: {image_size: 32}", "model.image_size: 32, expected a value >= 64."),
        ("model: {checkpoint: 3}", "model.checkpoint: 3, expected a path."),
        ("run: {name: a/b}", 'run.name: "a/b", expected text that matches'),
        ("run: {seed: -1}", "run.seed: -1, expected a value >= 0."),
        ("eval: {metrics: hd95}", 'eval.metrics: "hd95", expected a list, such as [a, b].'),
        ("eval: {metrics: [1]}", "eval.metrics.0: 1, expected text."),
        ("eval: {metrics: [hd59]}", "eval.metrics.0: unknown metric 'hd59'. Did you mean 'hd95'? Known: "),
        ("track: {experiment: ''}", 'track.experiment: "", expected text that is not empty.'),
        (
            "task: detection",
            "task: \"detection\", expected 'segmentation', 'classification', 'semantic' or 'instances'.",
        ),
        ("select: {name: gpss}", "select.name: unknown selector 'gpss'. Did you mean 'gps'?"),
        ("select: {per_neron: 1}", "select.per_neron: unknown option. Did you mean 'per_neuron'?"),
        ("select: {per_neuron: 0}", "select.per_neuron: 0, expected a value >= 1."),
        ("select: {per_neuron: true}", "select.per_neuron: true, expected an integer."),
        ("select: {name: linear, per_neuron: 1}", "replace the whole block: 'select={name: linear}'."),
        ("select: {name: 3}", "select.name: 3, expected text."),
    ],
)
def test_one_wrong_value(write: Callable[[str], Path], line: str, expected: str) -> None:
    path = write(MINIMAL + "\n" + line)
    message = problem(path)
    assert expected in message
    assert f"{path}:4  " in message
    assert "has 1 problem:" in message


def test_all_problems_are_told_at_once_with_their_places(write: Callable[[str], Path]) -> None:
    path = write("data:\n  dri: x\ntrain:\n  lr: fast\n  accumulate: 0\nselect: {per_neuron: 0}\n")
    lines = problem(path, "eval.overlays=-1", "nonsense", "score.batc=3").splitlines()
    assert lines[0] == f"config '{path}' has 8 problems:"
    found = [tuple(line.split(maxsplit=1)) for line in lines[1:]]
    assert [place.removeprefix(f"{path}:") for place, _ in found] == [*"12456", *["override"] * 3]
    starts = {
        (f"{path}:1", "data.dir: missing"),
        (f"{path}:2", "data.dri: unknown key. Did you mean 'dir'?"),
        (f"{path}:4", "train.lr: "),
        (f"{path}:5", "train.accumulate: 0, expected a value >= 1."),
        (f"{path}:6", "select.per_neuron: 0"),
        ("override", "eval.overlays: -1, expected a value >= 0."),
        ("override", "'nonsense' is not of the form section.key=value"),
        ("override", "score.batc: unknown key. Did you mean 'batch'?"),
    }
    for place, start in starts:
        assert any(p == place and text.startswith(start) for p, text in found), (place, start)


def test_a_key_that_occurs_twice(write: Callable[[str], Path]) -> None:
    message = problem(write(MINIMAL + "train:\n  lr: 1e-3\n  lr: 1e-4\n"))
    assert "job.yaml:4  train.lr: occurs twice (again in line 5). Keep one." in message


def test_a_list_of_parts_and_a_ratio_exclude_each_other(write: Callable[[str], Path]) -> None:
    message = problem(write(MINIMAL + "  split: ratio\n  val: some.txt\n"))
    assert 'data.val: "some.txt", expected no value with data.split: ratio' in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [a", "job.yaml:1: not valid YAML"),
        ("a: 1\n b: 2", "not valid YAML"),
        ("data:\n\tdir: x", "job.yaml:2: not valid YAML"),
        ("data: !!python/object:os.system {}", "not valid YAML: tag "),
        ("data: &d\n  dir: *d", "a block contains itself"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("- a\n- b", "found list"),
        ("just words", "found str"),
        ("", "data: missing"),
    ],
)
def test_a_file_that_is_no_config(write: Callable[[str], Path], text: str, expected: str) -> None:
    assert expected in problem(write(text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xff\xfe\x00data")
    assert "not readable as YAML in UTF-8" in problem(path)


def test_overrides_win_in_their_order(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL + "train: {lr: 1}"), ["train.lr=2", "train.lr=3", "run.name=x", "data.dir=a=b"])
    assert (config.train.lr, config.run.name, config.data.dir) == (3.0, "x", Path("a=b"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr", "'train.lr' is not of the form section.key=value"),
        ("=3", "'=3' is not of the form section.key=value"),
        ("train..lr=3", "is not of the form section.key=value"),
        ("train.lr=[1", 'train.lr: "[1" is not valid YAML; quote it.'),
        ("task.name=x", "task.name: task has no keys of its own."),
        ("train.lr=", "train.lr: null, expected a number."),
        ("train.lrr=1", "override  train.lrr: unknown key. Did you mean 'lr'?"),
        ("select.per_neuron=0", "override  select.per_neuron: 0, expected a value >= 1."),
    ],
)
def test_a_wrong_override(write: Callable[[str], Path], override: str, expected: str) -> None:
    assert expected in problem(write("task: segmentation\n" + MINIMAL), override)


def test_a_missing_config_lists_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"'poly.yaml' does not exist.*configs/ has: .*mine\.yaml"):
        load_config("poly.yaml")
    assert find_config("mine.yaml") == tmp_path / "configs" / "mine.yaml"
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    assert find_config("mine.yaml") == tmp_path / "mine.yaml"


def test_paths_are_tried_here_then_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = Path(__file__).resolve().parents[3]
    assert find_path("pyproject.toml") == project / "pyproject.toml"
    (tmp_path / "pyproject.toml").touch()
    assert find_path("pyproject.toml") == tmp_path / "pyproject.toml"
    assert find_path("nowhere") == tmp_path / "nowhere"
    assert find_path(tmp_path) == tmp_path


def _ready(model: Any, scores: Any, *, rate: float, kind: Literal["a", "b"] = "a") -> None: ...


def _bounded(model: Any, scores: Any, *, offset: Annotated[int, Field(ge=0, le=3)] = 0) -> None: ...


def test_the_resolved_config_has_the_selectors_defaults(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL), ["select={name: gps}"])
    assert "select:\n  name: gps\n  file: null\n  budget: null\n  per_neuron: 1\n" in config.to_yaml()
    assert load_config(write(config.to_yaml())) == config
    assert load_config(write(MINIMAL), ["select={name: linear}"]).select.options == {}


def test_a_budget_takes_the_place_of_the_knob(write: Callable[[str], Path]) -> None:
    config = load_config(write(MINIMAL), ["select={name: gps, budget: 1%}"])
    assert config.select.budget == "1%" and "per_neuron" not in config.select.options
    assert load_config(write(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.embeddings=cache"], "data.augment: true, expected false with train.embeddings"),
        (
            ["train.embeddings=cache", "data.augment=false", "data.tiles={size: 128}"],
            "tiles.size: 128, expected no tiles",
        ),
        (["tune.base=bf16", "train.precision=fp32"], 'tune.base: "bf16", expected fp32 with train.precision: fp32'),
        (["tune.start={norm: l3}"], "tune.start.norm: \"l3\", expected 'l2' or 'l1'"),
    ],
)
def test_impossible_pairs(write: Callable[[str], Path], settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(MINIMAL), settings)
    assert expected in str(error.value)


def test_options_follow_the_signature_of_any_function() -> None:
    table: dict[str, Callable[..., Any]] = {"ready": _ready, "bounded": _bounded}

    def check(name: str, **options: Any) -> list[tuple[str, str]]:
        return option_problems("method", name, options, table)

    assert check("ready", rate=1.0) == []
    assert check("bounded", offset=0) == []
    assert check("ready") == [("rate", "missing, expected a value.")]
    assert check("bounded", offset=4) == [("offset", "4, expected a value <= 3.")]
    assert check("ready", rate=1, kind="c")[0] == ("kind", "\"c\", expected 'a' or 'b'.")
    assert check("ready", rate=1, model=2)[0][1].startswith("unknown option.")
    assert check("raedy")[0] == ("name", "unknown method 'raedy'. Did you mean 'ready'? Known: bounded, ready.")


def test_an_option_without_annotation_is_not_checked() -> None:
    assert option_problems("method", "f", {"x": "anything"}, {"f": lambda model, scores, *, x: None}) == []


def test_the_real_selectors_are_read(write: Callable[[str], Path]) -> None:
    assert load_config(write(MINIMAL), ["select.per_neuron=5"]).select.options["per_neuron"] == 5
    with pytest.raises(ConfigError, match=r"select.per_neuron: 0, expected a value >= 1\."):
        load_config(write(MINIMAL), ["select.per_neuron=0"])


def test_importing_config_is_light() -> None:
    code = "import sys, samtune.config.load; assert not {'torch', 'mlflow', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
