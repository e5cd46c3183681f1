"""Every option of a config arrives where it acts: two runs with unusual settings, and what their parts were told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_backbone
from class_trees import write_class_folders
from helpers import write_data

from samtune.models.table import MODELS
from samtune.run import dry, train
from samtune.run import select as selecting
from samtune.run.recipe import finetune
from samtune.run.settings import load_config
from samtune.tasks.classes import task as classes
from samtune.tasks.masks import task as masks

Calls = dict[str, dict[str, Any]]

TRAIN = (
    "run.seed=7", "run.device=cpu", "track.mlflow=false", "train.precision=fp32", "train.batch=3", "train.accumulate=2",
    "train.steps=2", "train.epochs=4", "train.lr=0.002", "train.min_lr=1.0e-5", "train.optimizer=adam",
    "train.weight_decay=0.01", "train.warmup=0.3", "train.clip=0.5", "train.ema=0.9", "train.patience=3",
    "train.validate_every=2", "score.batch=2", "score.images=4", "data.workers=0",
    "tune.start={weight: 0.001, norm: l1, blocks: 1}",
)  # fmt: skip
MASKS = (
    *TRAIN, "model.name=toy_net", "model.image_size=64", "data.prompt=box", "data.augment=false", "data.cache=true",
    "data.split=files", "data.format=pairs", "score.loss=task", "select={name: gps, budget: 40}",
    "tune.exclude=[stem]", "tune.biases=false", "tune.decoder=false",
    "train.checkpointing=true", "loss={dice_weight: 0.25, bce_weight: 4.0}",
    "eval={split: val, metrics: [hd95], overlays: 0}",
)  # fmt: skip
CLASSES = (
    "task=classification", *TRAIN, "model.name=vit_mini", "model.checkpoint=random",
    "model.options={embed_dim: 32, depth: 2, num_heads: 2}", "data.augment=light", "data.shots=3",
    "train.drop_path=0.2", "train.mixup=0.8", "train.cutmix=0.4", "loss.label_smoothing=0.1",
    "select={name: gps, per_neuron: 3}",
)  # fmt: skip


def spy(monkeypatch: pytest.MonkeyPatch, calls: Calls, module: Any, name: str) -> None:
    """Notes what a function is called with, by the name of its parameters, the last call last."""
    real: Callable[..., Any] = getattr(module, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(real).bind(*args, **kwargs)
        bound.apply_defaults()
        calls[name] = dict(bound.arguments)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, noted)


@pytest.fixture(scope="module")
def masks_calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    folder, calls = tmp_path_factory.mktemp("masks"), Calls()
    data = write_data(folder / "data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(MODELS, toy_backbone.NAME, toy_backbone.ENTRY)
        for module, name in (
            (masks, "resolve_split"), (masks, "build_data"), (masks, "evaluate"), (selecting, "select"),
            (selecting, "score"), (train, "attach"), (train, "start_penalty"), (train, "fit"),
        ):  # fmt: skip
            spy(monkeypatch, calls, module, name)
        monkeypatch.setitem(masks.LOSSES, "dice_bce", _noted_loss(calls, masks.LOSSES["dice_bce"]))
        lists = (f"data.dir={data}", f"data.val={data / 'splits' / 'val.txt'}")
        finetune(load_config("polyp.yaml", (*lists, *MASKS)), run_dir=folder / "run")
    return calls


@pytest.fixture(scope="module")
def classes_calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    folder, calls = tmp_path_factory.mktemp("classes"), Calls()
    data = write_class_folders(folder / "data", train=5)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module, name in (
            (classes, "resolve_classes"), (classes, "build_model"), (classes, "build_class_data"),
            (classes, "build_view"), (classes, "mixer"), (classes, "cross_entropy"),
            (classes, "image_contrastive"), (selecting, "select"), (train, "fit"),
        ):  # fmt: skip
            spy(monkeypatch, calls, module, name)
        lists = (f"data.dir={data}", f"data.test={data / 'test'}")
        finetune(load_config("folders.yaml", (*lists, *CLASSES)), run_dir=folder / "run")
    return calls


def _noted_loss(calls: Calls, real: Callable[..., Any]) -> Callable[..., Any]:
    def noted(logits: Any, batch: Any, **weights: float) -> Any:
        calls["loss"] = dict(weights)
        return real(logits, batch, **weights)

    return noted


def arrived(calls: Calls, place: str) -> Any:
    """Returns `function.argument`, or an attribute of an argument."""
    function, argument, *rest = place.split(".")
    value = calls[function][argument]
    for name in rest:
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


OPTIMISATION = {
    "epochs": 4, "steps": 2, "lr": 0.002, "accumulate": 2, "optimizer": "adam", "weight_decay": 0.01, "warmup": 0.3,
    "min_lr": 1e-5, "clip": 0.5, "patience": 3, "validate_every": 2, "ema": 0.9,
}  # fmt: skip
READING = {"batch": 3, "score_batch": 2, "score_images": 4, "seed": 7, "workers": 0}


@pytest.mark.parametrize(("name", "value"), OPTIMISATION.items())
def test_how_to_train_arrives(masks_calls: Calls, classes_calls: Calls, name: str, value: object) -> None:
    for calls in (masks_calls, classes_calls):
        assert arrived(calls, f"fit.optimisation.{name}") == value


@pytest.mark.parametrize(("name", "value"), READING.items())
def test_how_to_read_arrives(masks_calls: Calls, classes_calls: Calls, name: str, value: object) -> None:
    assert arrived(masks_calls, f"build_data.options.{name}") == value
    assert arrived(classes_calls, f"build_class_data.options.{name}") == value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("resolve_split.split", "files"),
        ("resolve_split.seed", 7),
        ("resolve_split.empty", "skip"),  # who prompts for objects leaves out what shows none
        ("build_data.score_empty", True),
        ("resolve_split.given.train", None),
        ("resolve_split.source.format", "pairs"),
        ("resolve_split.source.categories", None),
        ("build_data.options.cache", True),
        ("build_data.image_size", 64),
        ("build_data.prompt", "box"),
        ("build_data.augment", False),
        ("build_data.score_prompt", "box"),  # the task's own loss wants the task's prompt
        ("select.name", "gps"),
        ("select.budget", 40),
        ("select.biases", False),
        ("select.decoder", False),
        ("select.exclude", ("stem",)),
        ("score.per", "batch"),
        ("attach.seed", 7),
        ("start_penalty.weight", 0.001),
        ("start_penalty.norm", "l1"),
        ("start_penalty.blocks", 1),
        ("loss.dice_weight", 0.25),
        ("loss.bce_weight", 4.0),
        ("evaluate.split", "val"),
        ("fit.model.checkpointing", True),
    ],
)
def test_an_option_of_masks_arrives(masks_calls: Calls, place: str, value: object) -> None:
    assert arrived(masks_calls, place) == value


def test_given_parts_and_metrics_of_masks_arrive(masks_calls: Calls) -> None:
    assert Path(arrived(masks_calls, "resolve_split.given.val")).name == "val.txt"
    assert "hd95" in arrived(masks_calls, "evaluate.metrics")
    assert arrived(masks_calls, "fit.objective.penalty") is not None
    assert arrived(masks_calls, "fit.objective.mix") is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("resolve_classes.shots", 3),
        ("resolve_classes.shots_seed", 7),
        ("resolve_classes.retrain", False),
        ("build_model.options.drop_path", 0.2),
        ("build_model.options.seed", 7),
        ("build_model.options.embed_dim", 32),
        ("build_model.checkpoint", "random"),
        ("build_class_data.augment", "light"),
        ("build_view.resize", "crop"),  # of class folders
        ("build_view.interpolation", "bicubic"),
        ("build_class_data.score_views", True),
        ("build_class_data.options.cache", False),
        ("mixer.mixup", 0.8),
        ("mixer.cutmix", 0.4),
        ("mixer.classes", 3),
        ("mixer.seed", 7),
        ("cross_entropy.label_smoothing", 0.1),
        ("image_contrastive.temperature", 0.07),
        ("select.options.per_neuron", 3),
    ],
)
def test_an_option_of_classes_arrives(classes_calls: Calls, place: str, value: object) -> None:
    assert arrived(classes_calls, place) == value


def test_given_parts_and_mixing_of_classes_arrive(classes_calls: Calls) -> None:
    assert Path(arrived(classes_calls, "resolve_classes.given.test")).name == "test"
    assert arrived(classes_calls, "fit.objective.mix") is not None
    assert dry.fit is train.fit  # a dry run trains by the same function
