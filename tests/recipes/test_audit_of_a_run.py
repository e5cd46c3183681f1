"""A run proves its files before it ends, and a run that breaks leaves the best epoch: bugs are played by stand-ins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_data
from safetensors.torch import load_file

from samtune.base.tensors import read_metadata, save_tensors
from samtune.config.sections import Config
from samtune.errors import CheckpointError, NonFiniteError
from samtune.run import merge, train
from samtune.run.recipe import finetune
from samtune.run.settings import load_config

SMALL = (
    *("run.device=cpu", "model.image_size=64", "track.mlflow=false", "data.cache=false", "eval.overlays=0"),
    *("train.epochs=1", "train.batch=2", "train.precision=fp32", "score.batch=2"),
)
TRAINED = "mask_decoder.output_upscaling.3.bias"  # whole, as the decoder is


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config("polyp.yaml", [*SMALL, f"data.dir={write_data(tmp_path / 'data')}"])


def test_a_file_that_answers_otherwise_than_the_tuned_model_fails_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moved is selected, and base and delta fit: the logits alone tell."""
    real = merge.save_merged

    def save_merged(path: Path, model: Any, about: Any) -> None:
        values = model.net.get_parameter(TRAINED).data
        before = values.clone()
        values += 1
        real(path, model, about)
        values.copy_(before)

    monkeypatch.setattr(merge, "save_merged", save_merged)
    message = r"the audit of .*run failed: merged logits differ from tuned logits by up to [\d.e+]+\. Please report"
    with pytest.raises(CheckpointError, match=message):
        finetune(config, run_dir=tmp_path / "run")


def test_a_delta_that_does_not_lead_to_the_merged_model_fails_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge.save_delta

    def save_delta(path: Path, **options: Any) -> None:
        real(path, **options)
        tensors, metadata = load_file(path), read_metadata(path)
        tensors[f"bits/{TRAINED}"] = tensors[f"bits/{TRAINED}"] ^ 1
        save_tensors(path, tensors, metadata)

    monkeypatch.setattr(merge, "save_delta", save_delta)
    message = r"the audit of .*run failed: base \+ delta is not the merged model\. Please report"
    with pytest.raises(CheckpointError, match=message):
        finetune(config, run_dir=tmp_path / "run")


def test_a_training_that_changes_nothing_is_said(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = config.model_copy(update={"train": config.train.model_copy(update={"lr": 1e-30, "steps": 1})})
    linear = slow.model_copy(update={"select": type(config.select)(name="linear")})
    with caplog.at_level(logging.WARNING, "samtune"):
        finetune(linear, run_dir=tmp_path / "run")
    assert "the training changed no selected entry, so this model is its base" in caplog.text
    assert "train.lr = 1e-30" in caplog.text


def test_a_diverged_run_leaves_the_best_epoch_in_all_its_files(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = finetune(config, run_dir=tmp_path / "whole").run_dir
    real = train.fit

    def fit_then_diverge(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)
        raise NonFiniteError("3 updates in a row had no finite loss and gradient")

    monkeypatch.setattr(train, "fit", fit_then_diverge)
    with pytest.raises(NonFiniteError, match="3 updates in a row"), caplog.at_level(logging.INFO, "samtune"):
        finetune(config, run_dir=tmp_path / "broken")
    found, expected = (load_file(folder / "merged.safetensors") for folder in (tmp_path / "broken", whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (tmp_path / "broken" / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
    assert "base + delta = merged model, and back" in caplog.text
