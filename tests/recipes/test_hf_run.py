"""A SAM 2 of transformers through the main path: scored, selected, trained, merged, audited, measured, served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import run
from fastapi.testclient import TestClient
from helpers import write_data
from toy import toy_batch
from toy_hf import toy_hf

from samtune.files.merged import load_merged
from samtune.serve.app import create_app
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tasks.masks.service import MaskService


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, SAM 2's folder `base`, and a run."""
    root = tmp_path_factory.mktemp("hf_run")
    write_data(root / "data")
    toy_hf("sam2").save_stock(root / "base")
    model = ("model.name=sam2", f"model.checkpoint={root / 'base'}", f"data.dir={root / 'data'}", "train.steps=2")
    few = ("track.mlflow=false", "train.checkpointing=true", "eval.overlays=1")
    assert run("finetune", "--config", "polyp.yaml", *model, *few, "--run-dir", root / "run") == 0
    return root


def test_a_run_leaves_a_folder_that_transformers_loads_with_equal_logits(made: Path) -> None:
    merged, said = load_merged(made / "run" / "merged.safetensors", MaskDescription)
    stock: Any = transformers.Sam2Model.from_pretrained(made / "run" / "transformers").eval()
    processor: Any = transformers.AutoProcessor.from_pretrained(made / "run" / "transformers").image_processor
    assert (processor.size["height"], processor.mask_size["height"]) == (64, 16)
    batch, plain = toy_batch(), toy_hf("sam2")
    with torch.no_grad():
        wanted = merged(batch)
        pixels = plain.normalise(batch.images, batch.valid())
        found = stock(pixel_values=pixels, multimask_output=False).pred_masks[:, 0]
        assert not torch.equal(wanted, plain(batch))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert said.model == "sam2" and said.image_size == 64
    assert "transformers=" in (made / "run" / "config.yaml").read_text().splitlines()[0]


def test_every_command_takes_its_files(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, files, out = made / "base", made / "run", made / "out"
    assert run("audit", base, files, files / "selection.safetensors") == 0
    assert "unselected entries bit-equal" in capsys.readouterr().out
    assert run("apply", base, "--delta", files / "delta.safetensors", "--out", out / "again.safetensors") == 0
    assert run("undo", files, "--delta", files / "delta.safetensors", "--out", out / "base.safetensors") == 0
    assert run("diff", out / "base.safetensors", base) == 0
    assert run("diff", out / "again.safetensors", files / "transformers") == 0
    assert capsys.readouterr().out.count("no differences") == 2
    assert run("inspect", base) == 0
    assert "sam2" in capsys.readouterr().out
    assert run("evaluate", "--checkpoint", files, "--data", made / "data", "--out", out / "measured") == 0
    measured, reported = (json.loads((folder / "metrics.json").read_text()) for folder in (out / "measured", files))
    assert measured["mDice"] == reported["mDice"]
    picture = next((made / "data" / "images").iterdir())
    assert run("predict", "--checkpoint", base, picture, "--box", "4,4,30,30", "--out", out / "masks") == 0
    assert run("export", files, "--format", "transformers", "--out", out / "hub") == 0
    assert run("export", files, "--format", "onnx", "--out", out / "x") == 2
    service = MaskService.from_file(files / "merged.safetensors", device="cpu")
    with TestClient(create_app(MaskService, service), base_url="http://127.0.0.1") as web:
        assert web.get("/v1/model").json()["model"] == "sam2"
        assert web.post("/v1/predict", files={"image": (picture.name, picture.read_bytes())}).status_code == 200


def test_a_selection_of_another_model_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = f"select={{file: {made / 'run' / 'selection.safetensors'}}}"
    model = ("model.name=sam_tiny", "model.image_size=64", f"data.dir={made / 'data'}", "track.mlflow=false")
    assert run("finetune", "--config", "polyp.yaml", *model, chosen, "--run-dir", made / "other") == 4
    assert "was selected on another base" in capsys.readouterr().err
