"""DINOv2 and DINOv3 through the main path: classes of images, and classes of pixels with a head of maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from class_maps import NAMES, write_maps
from class_trees import write_class_folders
from commands import run
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from toy_dino import toy_dino
from toyvit import labelled_batch

from samtune.data.formats.index_pictures import read_values
from samtune.data.pictures import read_image
from samtune.files.merged import load_merged
from samtune.models.hf.dino import HEAD_FILE
from samtune.serve.app import create_app
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.semantic.predict import MapPredictor
from samtune.tasks.semantic.service import MapService

FEW = ("track.mlflow=false", "train.batch=4", "train.epochs=2", "run.device=cpu", "train.checkpointing=true")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DINOv2 on images of three classes."""
    root = tmp_path_factory.mktemp("dino_classes")
    write_class_folders(root / "data")
    toy_dino("dinov2").save_stock(root / "base")
    model = ("model.name=dinov2", f"model.checkpoint={root / 'base'}", f"data.dir={root / 'data'}")
    how = ("data.workers=0", "data.augment=none", "score.batch=4", "train.lr=0.003", *FEW)
    assert run("finetune", "--config", "folders.yaml", *model, *how, "--run-dir", root / "run") == 0
    return root


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DINOv3 on images with maps of classes."""
    root = tmp_path_factory.mktemp("dino_maps")
    write_maps(root / "data")
    toy_dino("dinov3").save_stock(root / "base")
    model = ("model.name=dinov3", f"model.checkpoint={root / 'base'}", "model.image_size=64")
    data = (f"data.dir={root / 'data'}", f"data.classes={json.dumps(NAMES)}", "eval.overlays=1")
    assert run("finetune", "--config", "semantic.yaml", *model, *data, *FEW, "--run-dir", root / "run") == 0
    return root


def test_a_classifier_is_tuned_merged_and_kept_as_a_folder(classes: Path) -> None:
    folder, batch = classes / "run", labelled_batch()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "classification" and metrics["trainable"]["head"] == 3 * 64 + 3
    assert metrics["trainable"]["selected"] > 0
    merged, said = load_merged(folder / "merged.safetensors", ClassDescription)
    assert said.model == "dinov2" and said.interpolation == "bicubic" and len(said.classes) == 3
    stock: Any = transformers.Dinov2Model.from_pretrained(folder / "transformers").eval()
    head = load_file(folder / "transformers" / HEAD_FILE)
    with torch.no_grad():
        tokens = stock((batch.images - merged.pixel_mean) / merged.pixel_std).last_hidden_state
        features = torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1)
        wanted = features @ head["head.weight"].T + head["head.bias"]
        torch.testing.assert_close(merged(batch), wanted)
    assert "transformers=" in (folder / "config.yaml").read_text().splitlines()[0]


def test_commands_take_a_classifiers_files(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = classes / "run", classes / "out"
    assert run("evaluate", "--checkpoint", folder, "--data", classes / "data", "--out", out) == 0
    assert (
        json.loads((out / "metrics.json").read_text())["top1"]
        == json.loads((folder / "metrics.json").read_text())["top1"]
    )
    assert run("audit", classes / "base", folder / "merged.safetensors", folder / "selection.safetensors") == 0
    applied, undone = classes / "applied.safetensors", classes / "undone.safetensors"
    assert run("apply", classes / "base", "--delta", folder / "delta.safetensors", "--out", applied) == 0
    assert applied.read_bytes() == (folder / "merged.safetensors").read_bytes()
    assert run("undo", applied, "--delta", folder / "delta.safetensors", "--out", undone) == 0
    assert run("export", folder, "--format", "transformers", "--out", classes / "folder") == 0
    assert (classes / "folder" / HEAD_FILE).is_file()
    assert run("export", folder, "--format", "pth", "--out", classes / "dino.pth") == 0
    capsys.readouterr()


def test_pixels_get_classes_by_a_head_of_maps(maps: Path) -> None:
    folder = maps / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "semantic" and metrics["trainable"]["head"] > 0 and 0 < metrics["mIoU"] <= 1
    image = next((maps / "data").rglob("images/*"))
    predictor = MapPredictor.from_file(folder / "merged.safetensors", device="cpu")
    found = predictor.predict(read_image(image))
    assert run("predict", "--checkpoint", folder, image, "--out", maps / "masks") == 0
    values = read_values(maps / "masks" / f"{image.stem}.png")
    assert np.array_equal(values, predictor.table.to_values(found.places))
    assert run("evaluate", "--checkpoint", folder, "--data", maps / "data", "--out", maps / "out") == 0
    assert json.loads((maps / "out" / "metrics.json").read_text())["mIoU"] == metrics["mIoU"]
    applied = maps / "applied.safetensors"
    assert run("apply", maps / "base", "--delta", folder / "delta.safetensors", "--out", applied) == 0
    assert applied.read_bytes() == (folder / "merged.safetensors").read_bytes()


def test_prompts_are_refused(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((maps / "data").rglob("images/*"))
    asked = ("predict", "--checkpoint", maps / "run", image, "--out", maps / "asked", "--box", "1,1,9,9")
    assert run(*asked) != 0 and "answers no boxes or points" in capsys.readouterr().err
    service = MapService.from_file(maps / "run" / "merged.safetensors", device="cpu")
    with TestClient(create_app(MapService, service), base_url="http://127.0.0.1") as web:
        upload = {"image": (image.name, image.read_bytes())}
        assert web.post("/v1/predict", files=upload).status_code == 200
        answer = web.post("/v1/predict", files=upload, data={"box": "[1,1,9,9]"})
    assert answer.status_code == 422 and "answers no boxes or points" in answer.text


def test_tasks_of_masks_refuse_a_dino(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config in ("polyp.yaml", "instances.yaml"):
        assert run("finetune", "--config", config, "model.name=dinov3", f"data.dir={maps / 'data'}", "--dry-run") == 2
        assert "model.name" in capsys.readouterr().err
