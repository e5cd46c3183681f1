"""A model that the package does not know runs the whole job, by one line in the table of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from descriptions import load_masks
from helpers import write_data
from outside import ENTRY, OutsideModel, build

from samtune.errors import ConfigError
from samtune.files.export.pth import export_pth
from samtune.models.table import MODELS
from samtune.models.weights import read_state
from samtune.run.recipe import finetune
from samtune.run.settings import load_config


def test_a_model_from_outside_runs_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "theirs", ENTRY)
    settings = [
        f"data.dir={write_data(tmp_path / 'data')}",
        "model.name=theirs",
        "model.image_size=64",
        "train.steps=2",
    ]
    settings += ["run.device=cpu", "train.precision=fp32", "track.mlflow=false", "eval.overlays=0", "score.cells=8"]
    result = finetune(load_config("polyp.yaml", settings), run_dir=tmp_path / "run")
    model, info = load_masks(tmp_path / "run" / "merged.safetensors")
    assert isinstance(model, OutsideModel) and info.model == "theirs" and result.fit.steps == 2
    assert result.counts.selected == 16 + 2 * 16 and result.counts.decoder == 17
    export_pth(tmp_path / "run" / "merged.safetensors", tmp_path / "stock.pth")
    state = read_state(tmp_path / "stock.pth")
    assert state.keys() == build("theirs").net.state_dict().keys()
    statistics = [name for name in state if "running" in name]
    assert statistics and all(torch.equal(state[n], build("theirs").net.state_dict()[n]) for n in statistics)
    with pytest.raises(ConfigError, match=r"train\.embeddings is for Segment Anything, which theirs is not"):
        more = [*settings, "select={name: linear}", "data.augment=false", f"train.embeddings={tmp_path / 'kept'}"]
        finetune(load_config("polyp.yaml", more), run_dir=tmp_path / "other")
