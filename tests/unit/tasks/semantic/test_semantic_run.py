"""A semantic job from its config to every command that takes its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_maps import NAMES, write_maps
from commands import run
from fastapi.testclient import TestClient
from PIL import Image
from toy import ENTRY

from samtune.data.formats.index_pictures import read_values
from samtune.data.pictures import read_image
from samtune.files.description import Description
from samtune.models.classes import KEPT, PREFIX
from samtune.models.table import MODELS, build_model
from samtune.selection import load_selection
from samtune.serve.app import create_app
from samtune.sweep.plan import first_values, plan
from samtune.sweep.run import check_rows
from samtune.sweep.settings import load_sweep
from samtune.tasks.prompted import predict_prompted
from samtune.tasks.semantic.predict import MapPredictor
from samtune.tasks.semantic.service import MapService
from samtune.tasks.semantic.task import SemanticTask
from samtune.tasks.table import task_of_file

CHOSEN = ("--run-dir", "chosen", "--overwrite")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of eight steps, with its data and the weights that it started from."""
    place = tmp_path_factory.mktemp("semantic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", ENTRY)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        data = write_maps(place / "data")
        base = build_model("toy")
        torch.save(base.net.state_dict(), place / "base.pth")
        names = f"data.classes={json.dumps(NAMES)}"
        overrides = (names, "model.name=toy", "model.checkpoint=base.pth", "train.epochs=4", "train.batch=2")
        rest = ("track.mlflow=false", "eval.overlays=1", "train.lr=0.003", f"data.dir={data}")
        assert run("finetune", "--config", "semantic.yaml", *overrides, *rest, "--run-dir", place / "run") == 0
        yield place


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    monkeypatch.chdir(made)


def test_the_run_folder(made: Path) -> None:
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["task"] == "semantic" and metrics["n_images"] == 2 and metrics["before"] is None
    assert 0 < metrics["mIoU"] <= metrics["mDice"] <= 1
    assert set(metrics["per_class"]) == set(NAMES.values())
    assert np.mean([row["iou"] for row in metrics["per_class"].values()]) == pytest.approx(metrics["mIoU"])
    assert {"mIoU", "mDice", "pixel_accuracy", "per_class"} <= set(metrics["definition"])
    assert 0 < metrics["metrics"]["pixel_accuracy"] < 1
    assert np.sum(metrics["confusion"]) == 2 * 40 * 46  # the frame does not count
    assert metrics["ci95"]["mIoU"][0] <= metrics["mIoU"] <= metrics["ci95"]["mIoU"][1]
    assert metrics["trainable"]["head"] > 0
    assert 0.2 < metrics["trivial"]["most_frequent"] < 0.34  # the ground alone, of three classes
    merged = Path("run/merged.safetensors")
    assert task_of_file(merged) is SemanticTask
    assert Description.read(merged).classes == tuple(NAMES.values())
    assert Path("run/confusion.png").is_file() and len(list(Path("run/overlays").glob("*.png"))) == 2
    page = Path("run/report.html").read_text()
    assert "Mean IoU" in page and "stripe" in page and "Confusion matrix" in page
    events = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["split"] == "train"]
    assert losses[-1] < losses[0]


def test_the_file_still_segments_by_prompt(made: Path) -> None:
    """Before a step it answers bit for bit as its base; after the run by the same tokens, which did not move."""
    image = read_image(next((made / "data/test/images").iterdir()))
    base, fresh = (build_model("toy", checkpoint=made / "base.pth", classes=count) for count in (None, 3))
    tuned = MapPredictor.from_file("run/merged.safetensors", device="cpu")
    prompt = {"boxes_xyxy": [10, 8, 38, 30], "points_xy": [[20, 15]]}
    before, untouched = (predict_prompted(model, image, **prompt) for model in (base, fresh))
    np.testing.assert_array_equal(before.probability, untouched.probability)
    after = tuned.segment(image, **prompt)
    assert after.mask.shape == image.shape[:2] and np.isfinite(after.probability).all()
    old, new = base.net.state_dict(), tuned.model.net.state_dict()
    assert [n for n in old if n.startswith(KEPT)]
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith(KEPT))


def test_evaluate_gives_the_numbers_of_the_run(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--checkpoint", "run", "--data", made / "data", "--out", "measured") == 0
    measured, own = (json.loads(Path(p, "metrics.json").read_text()) for p in ("measured", "run"))
    assert measured["confusion"] == own["confusion"]
    assert run("compare", "run", "measured") == 0
    assert "mIoU" in capsys.readouterr().out


def test_predictions_in_every_format(made: Path) -> None:
    images = made / "data/test/images"
    for form in ("png", "coco", "geojson"):
        assert run("predict", "--checkpoint", "run", images, "--out", "found", "--format", form, "--overlay") == 0
    name = sorted(images.iterdir())[0].stem
    expected = MapPredictor.from_file("run/merged.safetensors").predict(read_image(images / f"{name}.png")).places
    with Image.open(f"found/{name}.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), expected)
    with Image.open(f"found/overlays/{name}.png") as picture:
        assert picture.width > 2 * 300
    coco = json.loads(Path("found/predictions.json").read_text())
    assert len(coco["images"]) == 2 and [c["name"] for c in coco["categories"]] == list(NAMES.values())
    assert sum(a["area"] for a in coco["annotations"]) == 2 * 40 * 48
    assert run("predict", "--checkpoint", "run", images, "--out", "listed", "--format", "index") == 0
    np.testing.assert_array_equal(read_values(Path(f"listed/masks/{name}.png")), expected)
    assert Path("listed/labels.txt").read_text() == "".join(f"{value} {text}\n" for value, text in NAMES.items())
    features = json.loads(Path(f"found/{name}.geojson").read_text())["features"]
    assert {feature["properties"]["class"] for feature in features} == {NAMES[place] for place in np.unique(expected)}


def test_a_box_gets_one_mask(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((made / "data/test/images").iterdir())
    assert run("predict", "--checkpoint", "run", image, "--out", "boxed", "--box", "10,8,38,30") == 0
    with Image.open(f"boxed/{image.stem}.png") as picture:
        assert picture.size == (48, 40) and set(np.unique(np.array(picture)).tolist()) <= {0, 255}
    prompt = ("--box", "10,8,38,30", "--format", "coco")
    assert run("predict", "--checkpoint", "run", image, "--out", "boxed", *prompt) != 0
    assert "--format and --overlay are of maps" in capsys.readouterr().err
    assert run("predict", "--checkpoint", "run", image, "--out", "boxed", "--format", "cocoa") != 0
    assert "coco" in capsys.readouterr().err


def test_the_server_answers_with_classes_and_with_masks(made: Path) -> None:
    image = next((made / "data/test/images").iterdir())
    service = MapService.from_file(made / "run/merged.safetensors", device="cpu")
    with TestClient(create_app(MapService, service), base_url="http://127.0.0.1") as web:
        about = web.get("/v1/model").json()
        assert [row["name"] for row in about["classes"]] == list(NAMES.values()) and about["prompt"] == "none"

        def ask(**fields: str) -> Any:
            return web.post("/v1/predict", files={"image": (image.name, image.read_bytes())}, data=fields)

        plain, told = ask(), ask(format="json").json()
        assert plain.headers["content-type"] == "image/png"
        assert sum(row["area"] for row in told["classes"]) == 40 * 48
        assert {row["class"] for row in told["classes"]} <= set(NAMES.values())
        boxed = ask(box="[10, 8, 38, 30]", format="json").json()
        assert boxed["size"] == [40, 48] and "counts" in boxed
        assert ask(box="[1, 2]").status_code == 422
        assert "legend" in web.get("/").text


def test_the_audit_and_the_way_back(made: Path) -> None:
    assert run("audit", "base.pth", "run", "run/selection.safetensors") == 0
    assert run("undo", "run", "--delta", "run/delta.safetensors", "--out", "undone.safetensors") == 0
    assert run("apply", "base.pth", "--delta", "run/delta.safetensors", "--out", "again.safetensors") == 0
    assert run("export", "run", "--out", "stock.pth") != 0  # segment-anything has no class tokens


def test_the_data_can_be_verified(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "verify", made / "data") == 0
    assert "no errors" in capsys.readouterr().out


def test_a_dry_run_and_training_without_practice(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("model.name=toy", "model.checkpoint=base.pth", f"data.dir={made / 'data'}", "track.mlflow=false")
    assert run("finetune", "--config", "semantic.yaml", *small, "train.batch=auto", "--dry-run") == 0
    assert "trainable" in capsys.readouterr().out
    assert run("finetune", "--config", "semantic.yaml", *small, "loss.box_weight=0", "--dry-run") == 0


@pytest.mark.parametrize("select", ["{name: gps, per_neuron: 1}", "{name: grft}", "{name: spt}"])
def test_selectors_that_score(made: Path, select: str) -> None:
    small = ("model.name=toy", "model.checkpoint=base.pth", f"data.dir={made / 'data'}", "track.mlflow=false")
    assert run("select", "--config", "semantic.yaml", *small, f"select={select}", *CHOSEN) == 0
    selection = load_selection(Path("chosen/selection.safetensors"))
    assert {f"{PREFIX}tokens", f"{PREFIX}weights.2"} <= set(selection.whole)
    assert not [name for name in selection.names() if name.startswith(KEPT)]


def test_cached_embeddings_change_nothing(made: Path) -> None:
    from samtune.base.tensors import load_tensors

    linear = ("data.augment=none", "select={name: linear}", "train.epochs=2")
    merged = []
    for folder, more in (("plain", ()), ("cached", ("train.embeddings=embeddings",))):
        command = ("finetune", "--config", "run/config.yaml", "--run-dir", folder, *linear, "eval.overlays=0", *more)
        assert run(*command) == 0
        merged.append(load_tensors(made / folder / "merged.safetensors"))
    assert len(list((made / "embeddings").iterdir())) == 6  # 4 of train, 2 of val
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_a_sweep_can_be_planned(made: Path) -> None:
    cells = {name: {"title": name, "overrides": {"select": {"name": name}}} for name in ("full", "lora", "gps")}
    Path("sweep.yaml").write_text(json.dumps({"name": "maps", "config": "semantic.yaml", "cells": cells}))
    sweep = load_sweep("sweep.yaml")
    planned = plan(sweep, first_values(sweep))
    check_rows(planned)
    assert len(planned) == 3 * len(sweep.seeds)
