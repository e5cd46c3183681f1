"""Classes of single images: the table that is written, and what is refused by name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from descriptions import class_description
from PIL import Image
from toyvit import toy_classifier

from samtune.errors import DataError
from samtune.files.merged import save_merged
from samtune.tasks.classes.predict import ClassPredictor, predict_class_files
from samtune.tasks.classes.views import build_view
from samtune.tasks.predict import Prediction
from samtune.types import LabelledBatch


@pytest.fixture(params=["squash", "crop"])
def predictor(request: pytest.FixtureRequest) -> ClassPredictor:
    model = toy_classifier("vit")
    info = class_description(model, classes=("cat", "dog", "eel"), resize=request.param, base_hash="0")
    return ClassPredictor(model, info)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def test_all_classes_share_the_probability(predictor: ClassPredictor) -> None:
    found = predictor.predict(grey(40, 50))
    assert found.ranking[0] == (found.name, found.probability)
    assert {name for name, _ in found.ranking} == {"cat", "dog", "eel"}
    assert sum(share for _, share in found.ranking) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(1, 101), (303, 3)])
def test_a_very_long_image_is_refused(height: int, width: int, predictor: ClassPredictor) -> None:
    with pytest.raises(DataError, match=rf"the image: {width} x {height} pixels, one side more than 100 times"):
        predictor.predict(grey(height, width))
    predictor.predict(grey(2, 200))


def test_the_others_are_written_and_the_bad_ones_named(predictor: ClassPredictor, tmp_path: Path) -> None:
    for name, (height, width) in {"good": (20, 20), "long": (2, 300)}.items():
        Image.fromarray(grey(height, width)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("hello")
    save_merged(tmp_path / "merged.safetensors", predictor.model, predictor.info)
    with pytest.raises(DataError, match="no class for 2 of 3 images") as caught:
        predict_class_files(Prediction(tmp_path / "merged.safetensors", [tmp_path], tmp_path / "out", device="cpu"))
    assert f"{tmp_path / 'long.png'}: 300 x 2 pixels" in str(caught.value) and "text.png" in str(caught.value)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert row["file"] == str(tmp_path / "good.png") and row["class"] in ("cat", "dog", "eel")


def test_the_likeliest_class_comes_first(predictor: ClassPredictor) -> None:
    """Against the model's own logits of the view that an evaluation takes."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    info = predictor.info
    view = build_view("none", image_size=info.image_size, resize=info.resize, interpolation=info.interpolation)
    pixels = view.drawn(view.fixed(Image.fromarray(image)))
    with torch.no_grad():
        logits = predictor.model.eval()(LabelledBatch(pixels[None], torch.zeros(1, dtype=torch.int64), ("x",)))[0]
    shares = dict(zip(("cat", "dog", "eel"), logits.softmax(0).tolist(), strict=True))
    found = predictor.predict(image)
    assert found.name == max(shares, key=lambda name: shares[name])
    assert [name for name, _ in found.ranking] == sorted(shares, key=lambda name: -shares[name])
    assert [share for _, share in found.ranking] == pytest.approx(sorted(shares.values(), reverse=True))
    assert found.probability == found.ranking[0][1] > 1 / 3
