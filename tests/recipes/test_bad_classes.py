"""Wrong input of a classification job: what is said, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from class_trees import write_class_folders, write_fgvc, write_vtab
from helpers import RunCommand
from PIL import Image

from samtune.base.tensors import save_tensors
from samtune.models.timm.model import build_classifier

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
MODEL = f"model={{name: vit_tiny_patch16_224, checkpoint: random, image_size: 32, options: {json.dumps(OPTIONS)}}}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data", classes=3)


def finetune(run: RunCommand, data: Path, *more: str) -> tuple[int, str]:
    return run("finetune", "--config", "folders.yaml", MODEL, f"data.dir={data}", "data.workers=0", "train.steps=1",
               "train.batch=4", "run.device=cpu", "track.mlflow=false", *more)  # fmt: skip


def test_one_class_is_no_task(run: RunCommand, data: Path) -> None:
    for part in ("train", "val", "test"):
        for name in ("class_1", "class_2"):
            shutil.rmtree(data / part / name)
    code, err = finetune(run, data)
    assert code == 3
    assert "class_0" in err and "one class" in err


def test_an_empty_class_is_named(run: RunCommand, data: Path) -> None:
    for path in (data / "train" / "class_1").iterdir():
        path.unlink()
    code, err = finetune(run, data)
    assert code == 3
    assert "class_1" in err and "train" in err


def test_a_class_that_training_lacks_is_named(run: RunCommand, data: Path) -> None:
    shutil.copytree(data / "test" / "class_1", data / "test" / "class_9")
    code, err = finetune(run, data)
    assert code == 3
    assert "class_9" in err


def test_all_corrupt_images_are_listed(run: RunCommand, data: Path) -> None:
    broken = [next((data / part / "class_2").iterdir()) for part in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    code, err = finetune(run, data)
    assert code == 3
    assert all(path.name in err for path in broken)


def test_a_list_that_names_absent_images(run: RunCommand, tmp_path: Path) -> None:
    folder = write_vtab(tmp_path / "vtab", "cifar")
    file = folder / "cifar" / "train800.txt"
    file.write_text(file.read_text() + "images/train/999999.jpg 1\n")
    code, err = finetune(run, folder, "data.name=vtab/cifar")
    assert code == 3
    assert "train800.txt" in err and "999999.jpg" in err


def test_labels_out_of_range(run: RunCommand, tmp_path: Path) -> None:
    folder = write_vtab(tmp_path / "vtab", "kitti")  # 4 classes
    file = folder / "kitti" / "val200.txt"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([f"{first.split()[0]} 4", *rest]) + "\n")
    code, err = finetune(run, folder, "data.name=vtab/kitti")
    assert code == 3
    assert "val200.txt" in err and "4" in err


def test_an_unknown_data_set(run: RunCommand, tmp_path: Path) -> None:
    folder = write_fgvc(tmp_path / "fgvc", "cub")
    code, err = finetune(run, folder, "data.name=fgvc/cubs")
    assert code == 2
    assert "Did you mean 'fgvc/cub'?" in err


def test_more_classes_than_the_head_of_the_checkpoint(run: RunCommand, data: Path, tmp_path: Path) -> None:
    small = build_classifier("vit_tiny_patch16_224", classes=2, checkpoint="random", image_size=32, **OPTIONS)
    save_tensors(tmp_path / "two.safetensors", small.net.state_dict(), {})
    code, err = finetune(run, data, f"model.checkpoint={tmp_path / 'two.safetensors'}", "model.head=checkpoint")
    assert code == 4
    assert "2 outputs" in err and "3 classes" in err and "model.head=new" in err


def test_a_checkpoint_of_another_architecture(run: RunCommand, data: Path, tmp_path: Path) -> None:
    other = build_classifier("vit_tiny_patch16_224", classes=3, checkpoint="random", image_size=32,
                             **{**OPTIONS, "embed_dim": 48})  # fmt: skip
    save_tensors(tmp_path / "wide.safetensors", other.net.state_dict(), {})
    code, err = finetune(run, data, f"model.checkpoint={tmp_path / 'wide.safetensors'}")
    assert code == 4
    assert "48" in err
    code, err = finetune(run, data, f"model.checkpoint={tmp_path / 'nowhere.pth'}")
    assert code == 4
    assert "does not exist" in err
    torch.save({"w": torch.ones(3)}, tmp_path / "foreign.pth")
    code, err = finetune(run, data, f"model.checkpoint={tmp_path / 'foreign.pth'}")
    assert code == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=vit_tiny_patch17", "timm has no model"),
        ("model={name: resnet18, checkpoint: random}", "whose parameters samtune does not know"),
        ("model.options={depht: 3}", "timm can't build"),
        ("model.image_size=33", "the nearest is 32"),
        ("select={name: gps, per_neuron: 99}", "per_neuron"),
        ("select={name: vpt_deep, prompts: 0}", "prompts"),
    ],
)
def test_a_model_or_method_that_does_not_exist(run: RunCommand, data: Path, setting: str, message: str) -> None:
    code, err = finetune(run, data, setting)
    assert code == 2
    assert message in err


def test_more_shots_than_images(run: RunCommand, data: Path) -> None:
    code, err = finetune(run, data, "data.shots=5")
    assert code == 3
    assert "5" in err and "class_0" in err


def test_evaluating_on_classes_that_the_model_does_not_know(run: RunCommand, data: Path, tmp_path: Path) -> None:
    assert finetune(run, data, "run.name=known", "--run-dir", str(tmp_path / "run"))[0] == 0
    file = tmp_path / "run" / "merged.safetensors"
    (data / "test" / "class_2").rename(data / "test" / "zebra")
    code, err = run("evaluate", "--checkpoint", file, "--data", data)
    assert code == 3
    assert "zebra" in err and "3 classes" in err
    code, err = run("predict", "--checkpoint", file, "--out", tmp_path / "out", tmp_path / "nowhere")
    assert code == 3
    Image.new("RGB", (9, 9)).save(tmp_path / "ok.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, err = run(
        "predict", "--checkpoint", file, "--out", tmp_path / "out", tmp_path / "ok.png", tmp_path / "bad.png"
    )
    assert code == 3
    assert "no class for 1 of 2 images" in err
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 2
