"""The answers of a mask model: its fields, what it says of itself, and what a prompt does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from samtune.files.merged import save_merged
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tasks.masks.service import MaskService
from samtune.tasks.prompt_form import MAX_POINTS
from samtune.tasks.service import FieldError
from samtune.tasks.table import task_of_file

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
COLOURS: dict[str, Any] = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> MaskService:
    torch.manual_seed(0)
    info = MaskDescription(model="sam_tiny", image_size=64, prompt="box", base_hash="ab" * 32, **COLOURS)
    path = tmp_path_factory.mktemp("run") / "merged.safetensors"
    save_merged(path, info.build(), info)
    assert task_of_file(path).service is MaskService
    return MaskService.from_file(path, device="cpu")


def parse(name: str, text: str) -> Any:
    (field,) = [field for field in MaskService.fields if field.name == name]
    return field.parse(text)


def test_about(service: MaskService) -> None:
    assert service.about() == {
        "task": "segmentation",
        "model": "sam_tiny",
        "image_size": 64,
        "channels": 3,
        "range": None,
        "tiles": None,
        "prompt": "box",
        "prompts": None,
        "threshold": 0.5,
        "base_hash": "ab" * 32,
        "parameters": sum(p.numel() for p in service.predictor.model.parameters()),
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("box", "[1, 2, 3.5, 4]", [1, 2, 3.5, 4]),
        ("box", "null", None),
        ("points", "[[1, 2]]", [[1, 2]]),
        ("points", "null", None),
        ("labels", "[]", []),
        ("format", "", "png"),
        ("format", "json", "json"),
    ],
)
def test_fields_become_values(name: str, text: str, value: Any) -> None:
    assert parse(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("box", "[1, 2, 3]", "invalid_box"),
        ("box", "[1, 2, 3, true]", "invalid_box"),
        ("box", "[1, 2, 3, 1e9]", "invalid_box"),
        ("points", str([[1, 1]] * (MAX_POINTS + 1)), "too_many_points"),
        ("points", "[]", "invalid_points"),
        ("labels", "NaN", "invalid_json"),
        ("format", "gif", "unknown_format"),
    ],
)
def test_other_text_is_refused_by_name(name: str, text: str, code: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(name, text)
    assert (caught.value.code, caught.value.field) == (code, name)


def test_most_points_are_allowed() -> None:
    assert len(parse("points", str([[1, 1]] * MAX_POINTS))) == MAX_POINTS


def test_warnings_of_the_picture_come_first(service: MaskService) -> None:
    given = ["a grey image"]
    alone = service.answer(IMAGE, {"format": "json"}, given)
    assert given == ["a grey image"]  # the caller's list is left as it is
    first, second = json.loads(alone.content)["warnings"]
    assert first == "a grey image" and "tuned with prompt 'box'" in second
    boxed = service.answer(IMAGE, {"format": "json", "box": [-5, 5, 40, 30]}, [])
    assert json.loads(boxed.content)["warnings"] == ["the box was cut to the image"]


@pytest.mark.parametrize(
    ("values", "code", "field"),
    [
        ({"box": [90, 5, 99, 9]}, "invalid_box", "box"),
        ({"points": [[80, 5]]}, "invalid_points", "points"),
        ({"points": [[8, 5]], "labels": [2]}, "invalid_labels", "labels"),
    ],
)
def test_a_prompt_that_does_not_fit(service: MaskService, values: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        service.answer(IMAGE, values, [])
    assert (caught.value.code, caught.value.field) == (code, field)
