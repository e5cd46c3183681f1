"""A job on pictures of five channels and 16 bits, from its config to every command that takes its file."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from commands import run
from fastapi.testclient import TestClient
from PIL import Image
from toy import ENTRY

from samtune.base.tensors import read_metadata
from samtune.config.pixels import Pixels
from samtune.data.channels.read import read_pixels
from samtune.models.table import MODELS, build_model
from samtune.serve.app import create_app
from samtune.tasks.masks.predict import Predictor
from samtune.tasks.masks.service import MaskService

RANGE = (0, 4000)
SET = ("model.channels=5", "data.range=[0, 4000]")


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (48, 64, 5) values of 12 bits, of which the last channel shows the (48, 64) object."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((48, 64), bool)
    top, left = rng.integers(5, 20, 2)
    mask[top : top + 20, left : left + 25] = True
    values = rng.normal(900, 200, (48, 64, 5))
    values[..., 4] += 1500 * mask
    return values.clip(0, 4095).astype(np.uint16), mask


def write(folder: Path, numbers: range) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in numbers:
        values, mask = picture(number)
        how: Any = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"images/p{number}.tif", values, **how)
        Image.fromarray(mask).save(folder / f"masks/p{number}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of four steps, with its data and the RGB weights that it started from."""
    place = tmp_path_factory.mktemp("channels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", ENTRY)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        for part, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
            write(place / "data" / part, numbers)
        torch.save(build_model("toy").net.state_dict(), "base.pth")
        model = (
            "model.name=toy",
            "model.checkpoint=base.pth",
            "model.image_size=64",
            "train.epochs=2",
            "train.batch=2",
        )
        rest = ("track.mlflow=false", "eval.overlays=1", "select={name: gps}", "data.dir=data")
        assert run("finetune", "--config", "kvasir_lite.yaml", *model, *rest, *SET, "--run-dir", "run") == 0
        yield place


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    monkeypatch.chdir(made)


def test_the_file_says_what_it_takes(made: Path) -> None:
    said = read_metadata(Path("run/merged.safetensors"))
    assert (said["channels"], json.loads(said["range"])) == ("5", [0, 4000])
    assert len(json.loads(said["pixel_mean"])) == len(json.loads(said["pixel_std"])) == 5
    assert Path("run/report.html").is_file() and len(list(Path("run/overlays").iterdir())) == 2


def test_it_is_audited_undone_and_applied_from_the_stock_weights(made: Path) -> None:
    assert run("audit", "base.pth", "run/merged.safetensors", "run/selection.safetensors") == 0
    delta = ("--delta", "run/delta.safetensors")
    assert run("apply", "base.pth", *delta, "--out", "again.safetensors") == 0
    assert Path("again.safetensors").read_bytes() == Path("run/merged.safetensors").read_bytes()
    assert run("undo", "run/merged.safetensors", *delta, "--out", "undone.safetensors") == 0
    assert run("audit", "undone.safetensors", "run/merged.safetensors", "run/selection.safetensors") == 0


def test_predict_and_evaluate_take_the_file_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "--checkpoint", "run", "data/test/images", "--out", "found", "--overlay") == 0
    image = read_pixels("data/test/images/p6.tif", Pixels(5, RANGE))
    expected = Predictor.from_file("run/merged.safetensors").predict(image).mask
    assert np.array_equal(np.asarray(Image.open("found/p6.png")) > 0, expected)
    assert run("evaluate", "--checkpoint", "run", "--data", "data") == 0
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("rgb.png")
    capsys.readouterr()
    assert run("predict", "--checkpoint", "run", "rgb.png", "--out", "found") == 3
    assert "rgb.png: 3 channels, but the model takes 5" in capsys.readouterr().err


def test_a_stack_is_answered_page_by_page(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tifffile.TiffWriter("stack.tif") as writer:
        for number in (6, 7, 0):
            writer.write(picture(number)[0], photometric="minisblack", planarconfig="contig")
    stacked = ("predict", "--checkpoint", "run", "--format", "stack", "--out", "slices")
    assert run(*stacked, "stack.tif") == 0
    assert run("predict", "--checkpoint", "run", "data/test/images", "--out", "found") == 0
    pages = tifffile.imread("slices/stack.tif")
    assert pages.shape == (3, 48, 64) and pages.dtype == np.uint8
    assert np.array_equal(pages[0], np.asarray(Image.open("found/p6.png")))
    assert np.array_equal(pages[1], np.asarray(Image.open("found/p7.png")))
    with tifffile.TiffWriter("odd.tif") as writer:
        for count in (5, 4):
            writer.write(picture(6)[0][..., :count], photometric="minisblack", planarconfig="contig")
    capsys.readouterr()
    assert run(*stacked, "odd.tif") == 3 and not Path("slices/odd.tif").exists()
    assert "odd.tif, page 2: 4 channels, but the model takes 5" in capsys.readouterr().err
    assert run(*stacked, "stack.tif", "--overlay") == 2
    assert "leave --overlay out" in capsys.readouterr().err


def test_the_server_refuses_with_a_reason(made: Path) -> None:
    service = MaskService.from_file(Path("run/merged.safetensors"), device="cpu")
    file = BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file, format="PNG")
    with TestClient(create_app(MaskService, service), base_url="http://localhost") as client:
        assert client.get("/v1/model").json()["channels"] == 5
        response = client.post("/v1/predict", files={"image": ("a.png", file.getvalue())})
    assert response.status_code == 422 and response.json()["error"]["code"] == "unsupported_pixels"
    assert "takes 5 channels, values 0 to 4000" in response.json()["error"]["message"]


def test_all_that_is_wrong_with_a_folder_is_told_at_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("bad"), range(5))
    values, how = picture(1)[0], {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite("bad/images/p1.tif", np.zeros((48, 64, 13), np.uint16), **how)
    tifffile.imwrite("bad/images/p2.tif", values[..., :4], **how)
    tifffile.imwrite("bad/images/p3.tif", np.where(values > 2000, np.nan, values), **how)
    Image.fromarray(picture(4)[0][..., :3].astype(np.uint8)).save("bad/masks/p4.png")
    lines = (
        "p1.tif: 13 channels; at most 12",
        "p2.tif: 4 channels, but the model takes 5",
        "p3.tif: NaN or infinity in",
    )
    lines = (*lines, "p4.png: coloured mask")
    assert run("data", "verify", "bad") == 3
    told = capsys.readouterr()
    assert all(line in told.err for line in lines) and "data.range: [" in told.out
    job = ("finetune", "--config", "kvasir_lite.yaml", "model.name=toy", "data.dir=bad", "model.channels=5")
    assert run(*job) == 3
    told = capsys.readouterr()
    assert all(line in told.err for line in lines) and "add to the config: data.range: [" in told.err


def test_wrong_settings_are_told_together(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("finetune", "--config", "kvasir_lite.yaml", "model.channels=13", "data.range=[9, 9]") == 2
    told = capsys.readouterr().err
    assert "model.channels: 13, expected a value <= 12" in told
    assert "data.range: [9.0, 9.0], expected two numbers [low, high] with low below high" in told
