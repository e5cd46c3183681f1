"""The settings of a classification job: what they have of their own, and hyper-parameters from the papers."""

from __future__ import annotations

from pathlib import Path

import pytest

from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.tasks.classes.config import ClassificationConfig
from samtune.tasks.masks.config import SegmentationConfig

TEXT = "task: classification\ndata: {dir: pictures}\n"


def config(tmp_path: Path, text: str, *overrides: str) -> ClassificationConfig:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    found = load_config(file, overrides)
    assert isinstance(found, ClassificationConfig)
    return found


def test_the_task_chooses_the_sections(tmp_path: Path) -> None:
    found = config(tmp_path, TEXT)
    assert (found.train.epochs, found.train.optimizer, found.train.weight_decay, found.train.warmup) == (
        100, "adam", 0.0, 0.1,
    )  # fmt: skip
    assert found.model.name == "vit_base_patch16_224.augreg_in21k"
    (tmp_path / "seg.yaml").write_text("data: {dir: pictures}\n")
    assert isinstance(load_config(tmp_path / "seg.yaml"), SegmentationConfig)
    assert isinstance(load_config(tmp_path / "seg.yaml", ["task=classification"]), ClassificationConfig)
    assert isinstance(load_config(tmp_path / "job.yaml", ["task=segmentation"]), SegmentationConfig)


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    found = config(tmp_path, TEXT, "recipe=grft", "data.name=vtab/kitti", "model.options={depth: 2}")
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert load_config(tmp_path / "again.yaml") == found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompt=box"], "data.prompt: unknown key"),
        (["tune.decoder=true"], "tune.decoder: unknown key"),
        (["loss.dice_weight=1"], "loss.dice_weight: unknown key"),
        (["score.loss=pixel_contrastive"], "score.loss: \"pixel_contrastive\", expected 'contrastive' or"),
        (["train.ema=1.0"], "train.ema: 1.0, expected a value < 1"),
        (["loss.label_smoothing=-0.1"], "loss.label_smoothing: -0.1, expected a value >= 0"),
        (["data.shots=0"], "data.shots: 0, expected a value >= 1"),
        (["model.head=old"], "model.head: \"old\", expected 'new' or 'checkpoint'"),
        (
            ["model.options={drop_path: 0.1}"],
            "model.options.drop_path: is no option of the model: train.drop_path sets it.",
        ),
        (["recipe=gpz"], "recipe: \"gpz\", expected 'gps', 'grft' or 'spt'. Did you mean 'gps'?"),
        (["recipe=gps", "data.name=vtab/kity"], "Did you mean 'vtab/kitti'?"),
        (["data.retrain=true", "eval.split=val"], 'eval.split: "val", expected test with data.retrain'),
        (["data.retrain=true", "train.patience=3"], "train.patience: 3, expected no value with data.retrain"),
        (["tune.base=bf16", "train.precision=fp32"], 'tune.base: "bf16", expected fp32 with train.precision'),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, TEXT, *overrides)
    assert message in str(caught.value)


def test_a_recipe_fills_in_what_the_paper_used(tmp_path: Path) -> None:
    found = config(tmp_path, TEXT, "recipe=grft", "data.name=vtab/svhn")  # GRFT, Tab. 7
    assert (found.select.name, found.select.options["k"]) == ("grft", 4)
    assert (found.train.lr, found.train.batch) == (5e-3, 32)
    assert (found.tune.start.weight, found.tune.start.blocks, found.score.subsets) == (1e-3, 1, 1)
    found = config(tmp_path, TEXT, "recipe=gps", "data.name=fgvc/nabirds")  # GPS, Tab. 7
    assert (found.select.name, found.select.options["per_neuron"]) == ("gps", 10)
    found = config(tmp_path, TEXT, "recipe=spt")  # no data set: what holds for all
    assert (found.select.name, found.train.lr, found.train.batch, found.score.images) == ("spt", 1e-3, 64, 800)


def test_what_is_written_counts_more_than_the_recipe(tmp_path: Path) -> None:
    text = "task: classification\nrecipe: grft\ndata: {dir: pictures, name: vtab/svhn}\ntrain: {batch: 8}\n"
    found = config(tmp_path, text, "train.lr=0.25", "tune.start.blocks=null")
    assert (found.train.lr, found.train.batch, found.tune.start.blocks) == (0.25, 8, None)
    assert found.select.options["k"] == 4
    other = config(tmp_path, text, "select={name: linear}")
    assert (other.select.name, other.select.options) == ("linear", {})
    assert (other.train.lr, other.tune.start.weight, other.score.subsets) == (5e-3, 0.0, 1)
    budget = config(tmp_path, text, "select.budget=5000")
    assert (budget.select.budget, budget.select.name, "k" in budget.select.options) == (5000, "grft", False)
    (tmp_path / "s.safetensors").touch()
    assert config(tmp_path, text, "select={file: s.safetensors}").select.options == {}
