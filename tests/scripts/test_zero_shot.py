"""The zero-shot table: readers, clicks in the middle of what is meant, trivial answers, and a model's answers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import zero_shot
from toy import toy_lite


def disc(x: int, y: int, radius: int, side: int = 256) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.asarray((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2)


def test_a_click_lies_in_the_middle_of_the_largest_error() -> None:
    truth = torch.from_numpy(disc(100, 60, 20) | disc(200, 200, 9))
    assert zero_shot.middle(disc(100, 60, 20)) == pytest.approx((100, 60), abs=1)
    nothing = torch.zeros_like(truth)
    (x, y), adds = zero_shot._correction(nothing, truth)
    assert (x, y) == pytest.approx((100, 60), abs=1) and adds == 1
    (x, y), adds = zero_shot._correction(truth | torch.from_numpy(disc(50, 200, 30)), truth)
    assert (x, y) == pytest.approx((50, 200), abs=1) and adds == 0
    assert zero_shot._correction(truth, truth)[1] == 1


def test_the_trivial_answers_of_a_disc_are_right() -> None:
    found: zero_shot.Found = {}
    zero_shot.measure_trivial(torch.from_numpy(disc(128, 128, 40))[None], found)
    assert found["ellipse"][0] > 0.99 and found["disc 40"][0] > 0.98 > found["disc 20"][0]
    assert 0.98 < found["ceiling"][0] <= 1


def test_the_readers_give_objects_in_the_models_frame(tmp_path: Path) -> None:
    for name in ("images", "masks", "instances"):
        (tmp_path / name).mkdir()
    image = np.full((300, 512, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    classes = np.zeros((300, 512), np.uint8)
    classes[20:120, 30:130] = 8
    classes[200:204, 200:204] = 9  # too small in the frame
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), classes)
    instances = np.zeros((300, 512), np.uint16)
    instances[10:40, 10:40], instances[50:90, 300:340] = 1, 700
    cv2.imwrite(str(tmp_path / "instances" / "a.png"), instances)
    ((picture, cars),) = zero_shot.camvid(tmp_path)
    assert picture.shape == (150, 256, 3) and [int(car.sum()) for car in cars] == [2500]
    tiles = list(zero_shot.nuclei(tmp_path))
    assert [[int(mask.sum()) for mask in masks] for _, masks in tiles] == [[900], [1600]]
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), (classes > 0).astype(np.uint8) * 255)
    ((_, polyps),) = zero_shot.kvasir(tmp_path)
    assert len(polyps) == 1


def test_a_model_is_measured_by_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "SIDE", 64)
    model = toy_lite()
    truths = torch.from_numpy(np.stack([disc(20, 20, 8, 64), disc(44, 40, 12, 64)]))
    found: zero_shot.Found = {}
    zero_shot.measure_model(model, torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0)), truths, found)
    assert {key: len(values) for key, values in found.items()} == {
        "box": 2, "expected": 4, "iou": 4, "clicks 1": 2, "clicks 3": 2, "clicks 5": 2,
    }  # fmt: skip
    trivial: zero_shot.Found = {}
    zero_shot.measure_trivial(truths, trivial)
    lines = zero_shot.table("discs", trivial, {"toy": found})
    assert lines[0].startswith("discs, 2 objects: ellipse ") and "error with a box / the ellipse's" in lines[1]
