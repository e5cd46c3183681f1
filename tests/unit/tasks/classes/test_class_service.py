"""The answers of a classifier: the numbers of `predict`, what it says of itself, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samtune.files.merged import save_merged
from samtune.tasks.classes.description import ClassDescription
from samtune.tasks.classes.predict import ClassService, predict_class_files
from samtune.tasks.predict import Prediction
from samtune.tasks.service import FieldError
from samtune.tasks.table import task_of_file

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
COLOURS: dict[str, Any] = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


def service_of(folder: Path, *classes: str) -> ClassService:
    torch.manual_seed(0)
    info = ClassDescription(
        model="vit_mini",
        image_size=64,
        classes=classes,
        resize="crop",
        interpolation="bicubic",
        base_hash="cd" * 32,
        **COLOURS,
    )
    save_merged(folder / "merged.safetensors", info.build(), info)
    assert task_of_file(folder / "merged.safetensors").service is ClassService
    return ClassService.from_file(folder / "merged.safetensors", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def service(run: Path) -> ClassService:
    return service_of(run, "ant", "bee", "cow", "dog", "eel", "fox", "hälfte")


def test_about(service: ClassService) -> None:
    assert service.about() == {
        "task": "classification",
        "model": "vit_mini",
        "image_size": 64,
        "resize": "crop",
        "classes": ["ant", "bee", "cow", "dog", "eel", "fox", "hälfte"],
        "base_hash": "cd" * 32,
        "parameters": sum(p.numel() for p in service.predictor.model.parameters()),
    }


def test_five_classes_the_most_probable_first(service: ClassService) -> None:
    answer = service.answer(IMAGE, {}, ["a grey image"])
    content = json.loads(answer.content)
    assert answer.media_type == "application/json" and content["warnings"] == ["a grey image"]
    shares = [entry["probability"] for entry in content["ranking"]]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) < 1
    assert content["ranking"][0] == {"class": content["class"], "probability": content["probability"]}


def test_all_classes_where_there_are_fewer(tmp_path: Path) -> None:
    ranking = json.loads(service_of(tmp_path, "cat", "dog").answer(IMAGE, {}, []).content)["ranking"]
    assert {entry["class"] for entry in ranking} == {"cat", "dog"}
    assert sum(entry["probability"] for entry in ranking) == pytest.approx(1)


def test_the_numbers_of_the_command(service: ClassService, run: Path, tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    file = run / "merged.safetensors"
    predict_class_files(Prediction(file, [tmp_path / "a.png"], tmp_path / "out", device="cpu"))
    with (tmp_path / "out" / "predictions.csv").open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    content = json.loads(service.answer(IMAGE, {}, []).content)
    assert (row["class"], row["probability"]) == (content["class"], f"{content['probability']:.6f}")


@pytest.mark.parametrize("size", [(8, 808), (909, 9)])
def test_a_very_long_picture(service: ClassService, size: tuple[int, int]) -> None:
    with pytest.raises(FieldError, match="one side more than 100 times the other") as caught:
        service.answer(np.zeros((*size, 3), dtype=np.uint8), {}, [])
    assert (caught.value.code, caught.value.field) == ("image_size", "image")
