"""A job on instances from its config to every command that takes its file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from commands import run
from fastapi.testclient import TestClient
from object_maps import write_objects
from PIL import Image
from segment_anything import SamPredictor
from toy import ENTRY

from samtune.data.formats.annotations import Annotations
from samtune.data.formats.table import WRITERS
from samtune.data.pictures import read_image
from samtune.files.merged import load_merged
from samtune.models.table import MODELS, build_model
from samtune.selection import load_selection
from samtune.serve.app import create_app
from samtune.tasks.instances.objects import read_objects, renumbered
from samtune.tasks.instances.outputs import annotated
from samtune.tasks.instances.predict import InstancePredictor
from samtune.tasks.instances.prompts.prompting import Stock, grid_instances
from samtune.tasks.instances.service import InstanceService
from samtune.tasks.instances.task import InstanceTask
from samtune.tasks.pixels import batch_of_one
from samtune.tasks.table import task_of_data, task_of_file
from samtune.types import Instances


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of eight steps, with its data and the weights that it started from."""
    place = tmp_path_factory.mktemp("instances")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", ENTRY)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        data = write_objects(place / "data")
        base = build_model("toy")
        torch.save(base.net.state_dict(), place / "base.pth")
        overrides = ("model.name=toy", "model.checkpoint=base.pth", "train.epochs=4", "train.batch=2")
        rest = ("track.mlflow=false", "eval.overlays=1", "train.lr=0.003", f"data.dir={data}")
        assert run("finetune", "--config", "instances.yaml", *overrides, *rest, "--run-dir", place / "run") == 0
        yield place


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    monkeypatch.chdir(made)


def test_the_run_folder() -> None:
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["task"] == "instances" and metrics["n_images"] == 2
    assert {"AP50", "AP", "PQ", "AJI", "mDice"} <= set(metrics)
    assert {"AP", "AP50", "PQ", "AJI", "count_error"} <= set(metrics["metrics"]) & set(metrics["definition"])
    assert set(metrics["prompts"]) == {"none", "box", "point", "points3"}
    for kind, one in metrics["prompts"].items():
        for found in (one["val"], one["scenes"], *([] if kind == "none" else [one])):
            assert 0 <= found["mDice"] <= 1
            assert found["before"] is None if kind == "none" else 0 <= found["before"] <= 1
    assert set(metrics["trivial"]) == {"watershed_bright", "watershed_dark"}
    assert metrics["trainable"]["head"] > 0 and metrics["trainable"]["decoder"] > 0
    assert task_of_file(Path("run/merged.safetensors")) is InstanceTask
    assert task_of_data(Path("data"), None) is InstanceTask
    assert len(list(Path("run/overlays").glob("*.png"))) == 2
    page = Path("run/report.html").read_text()
    assert "Average precision" in page and "a click in its middle" in page
    events = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["split"] == "train"]
    assert losses[-1] < losses[0]
    base, tuned = torch.load("base.pth"), InstancePredictor.from_file("run/merged.safetensors").model.net.state_dict()
    moved = [name for name in base if not torch.equal(base[name], tuned[name])]
    assert any("iou_prediction_head" in name for name in moved)  # it trains along


def test_evaluate_gives_the_numbers_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--checkpoint", "run", "--data", "data", "--out", "measured") == 0
    measured, own = (json.loads(Path(p, "metrics.json").read_text()) for p in ("measured", "run"))
    assert measured["metrics"] == pytest.approx(own["metrics"], abs=1e-6)
    assert "mDice_points3" in capsys.readouterr().out
    assert run("compare", "run", "measured") == 0
    assert "AP50" in capsys.readouterr().out


def test_evaluate_reads_the_format_that_was_tuned_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for image in sorted(Path("data/test/images").iterdir()):
        Path("both/images").mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copy(image, "both/images"))
        truth, _ = renumbered(read_objects(image.parents[1] / "instances" / image.name))
        found[path.stem] = annotated(path, Instances(truth, np.ones(truth.max(), dtype=np.float32)), "cell")
    for form in ("coco", "yolo"):
        WRITERS[form](Annotations(found, {1: "cell"}), Path("both"))
    ask = ("evaluate", "--checkpoint", "run", "--data", "both", "--out", "of_both")
    assert run(*ask) != 0
    assert "has annotations as of coco and yolo" in capsys.readouterr().err

    def of_coco(*arguments: Any, **options: Any) -> Any:
        model, info = load_merged(*arguments, **options)
        return model, info.model_copy(update={"data_format": "coco"})

    monkeypatch.setattr("samtune.tasks.instances.evaluate.load_merged", of_coco)
    assert run(*ask) == 0
    own, again = (json.loads(Path(place, "metrics.json").read_text()) for place in ("run", "of_both"))
    assert again["metrics"] == pytest.approx(own["metrics"], abs=1e-6)


def test_predictions_in_every_format() -> None:
    images = Path("data/test/images")
    for form in ("png", "coco", "geojson"):
        assert run("predict", "--checkpoint", "run", images, "--out", "found", "--format", form, "--overlay") == 0
    assert run("predict", "--checkpoint", "run", images, "--out", "labels", "--format", "yolo") == 0
    assert len(list(Path("labels/labels").glob("*.txt"))) == 2
    assert run("predict", "--checkpoint", "run", images, "--out", "labels", "--format", "index") != 0  # of classes
    name = sorted(images.iterdir())[0].stem
    expected = InstancePredictor.from_file("run/merged.safetensors").predict(read_image(images / f"{name}.png"))
    with Image.open(f"found/{name}.png") as picture:
        np.testing.assert_array_equal(np.array(picture), expected.labels)
    with Image.open(f"found/overlays/{name}.png") as picture:
        assert max(picture.size) == 512
    with Path("found/counts.csv").open(newline="") as file:
        counts = {row["image"]: int(row["objects"]) for row in csv.DictReader(file)}
    assert counts[f"{name}.png"] == len(expected) and len(counts) == 2
    assert len(json.loads(Path("found/predictions.json").read_text())["annotations"]) == sum(counts.values())
    assert len(json.loads(Path(f"found/{name}.geojson").read_text())["features"]) == len(expected)


def test_slices_of_a_stack_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    images = [read_image(path) for path in sorted(Path("data/test/images").iterdir())]
    tifffile.imwrite("slices.tif", np.stack([image[:, :, 0] for image in images]), photometric="minisblack")
    ask = ("predict", "--checkpoint", "run", "slices.tif", "--out", "stacks", "--format", "stack")
    assert run(*ask) == 0
    with tifffile.TiffFile("stacks/slices.tif") as file:
        found = file.asarray()
        assert len(file.pages) == 2
    predictor = InstancePredictor.from_file("run/merged.safetensors")
    for page, image in zip(found, images, strict=True):
        expected = predictor.predict(np.repeat(image[:, :, :1], 3, axis=2))
        np.testing.assert_array_equal(page, expected.labels)
        assert page.dtype == np.uint16
    for wrong in (("--box", "4,6,18,20"), ("--point", "4x4"), ("--overlay",)):
        assert run(*ask, *wrong) != 0
        assert f"leave {wrong[0]} out" in capsys.readouterr().err


def test_five_channels_of_16_bits() -> None:
    """From the config to the answers by maps, boxes, a click and a grid; the untuned model is asked by a grid too."""
    rng = np.random.default_rng(0)
    for path in Path("data").rglob("*.png"):
        target = Path("deep", *path.parts[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        if "instances" in path.parts:
            shutil.copy(path, target)
            continue
        grey = read_image(path).astype(np.uint16)[:, :, :1] * 16
        values = np.concatenate([grey, rng.integers(0, 900, (*grey.shape[:2], 4), dtype=np.uint16)], axis=2)
        tifffile.imwrite(target.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")
    model = ("model.name=toy", "model.checkpoint=base.pth", "model.channels=5", "data.range=[0, 4000]")
    rest = ("train.epochs=1", "train.batch=2", "track.mlflow=false", "eval.overlays=1", "data.dir=deep")
    assert run("finetune", "--config", "instances.yaml", *model, *rest, "--run-dir", "deep/run") == 0
    assert json.loads(Path("deep/run/metrics.json").read_text())["prompts"]["box"]["before"] is not None
    image = sorted(Path("deep/test/images").iterdir())[0]
    for ask in ((), ("--box", "4,6,18,20", "--overlay"), ("--point", "4x4"), ("--point", "12,10")):
        assert run("predict", "--checkpoint", "deep/run", image, "--out", "deep/found", *ask) == 0
        with Image.open(f"deep/found/{image.stem}.png") as picture:
            assert picture.size == (48, 40)
    assert run("evaluate", "--checkpoint", "deep/run", "--data", "deep", "--out", "deep/measured") == 0
    own, again = (json.loads(Path("deep", p, "metrics.json").read_text()) for p in ("run", "measured"))
    assert again["metrics"] == pytest.approx(own["metrics"], abs=1e-6)


def test_one_object_by_its_box(capsys: pytest.CaptureFixture[str]) -> None:
    image = next(Path("data/test/images").iterdir())
    ask = ("predict", "--checkpoint", "run", image, "--out", "boxed")
    assert run(*ask, "--box", "4,6,18,20") == 0
    with Image.open(f"boxed/{image.stem}.png") as picture:
        assert picture.size == (48, 40) and set(np.unique(np.array(picture)).tolist()) <= {0, 255}
    for wrong, text in (
        (("--box", "4,6,18,20", "--point", "4x4"), "Leave one out"),
        (("--point", "4x5"), "as many rows as columns"),
        (("--box", "90,90,99,99"), "outside the image"),
        (("--format", "cocoa"), "coco"),
    ):
        assert run(*ask, *wrong) != 0
        assert text in capsys.readouterr().err


def test_a_grid_of_clicks() -> None:
    image = next(Path("data/test/images").iterdir())
    assert run("predict", "--checkpoint", "run", image, "--out", "grid", "--point", "4x4", "--format", "coco") == 0
    model = InstancePredictor.from_file("run/merged.safetensors").model
    found = grid_instances(model, read_image(image), points=4)
    assert len(json.loads(Path("grid/predictions.json").read_text())["annotations"]) == len(found)
    assert len(found) == found.labels.max()


def test_segment_anythings_predictor_sees_our_model() -> None:
    """Its own embedding and mask of a box are those of our path, at a size that is not the stock one."""
    model = build_model("toy", image_size=96)
    image = read_image(next(Path("data/test/images").iterdir()))
    stock: Any = Stock(model, model.embed(batch_of_one(image, 96, torch.int32)))  # type: ignore[arg-type]
    predictor = SamPredictor(stock)
    predictor.set_image(image)
    from samtune.tasks.prompted import predict_prompted

    box = np.array([4.0, 6, 18, 20])
    masks, _, _ = predictor.predict(box=box, multimask_output=False)
    ours = predict_prompted(model, image, boxes_xyxy=box)
    assert (masks[0] == ours.mask).mean() > 0.99


def test_the_server_answers_with_objects_and_with_masks() -> None:
    image = next(Path("data/test/images").iterdir())
    service = InstanceService.from_file(Path("run/merged.safetensors"), device="cpu")
    with TestClient(create_app(InstanceService, service), base_url="http://127.0.0.1") as web:
        assert web.get("/v1/model").json()["task"] == "instances"

        def ask(**fields: str) -> Any:
            return web.post("/v1/predict", files={"image": (image.name, image.read_bytes())}, data=fields)

        plain, told, drawn = ask(), ask(format="json").json(), ask(format="colours")
        assert plain.headers["X-Samtune-Kind"] == "objects"
        assert int(plain.headers["X-Samtune-Count"]) == len(told["objects"])
        assert told["size"] == [40, 48] and drawn.headers["content-type"] == "image/png"
        assert ask(box="[4, 6, 18, 20]", format="json").json()["size"] == [40, 48]
        assert ask(format="gif").status_code == 422
        assert all(one["area"] > 0 and len(one["colour"]) == 3 and one["counts"] for one in told["objects"])
        page = web.get("/").text
        assert "finds all objects" in page and 'id="legend"' in page and 'id="asks"' in page


def test_the_audit_and_the_way_back() -> None:
    assert run("audit", "base.pth", "run", "run/selection.safetensors") == 0
    assert run("undo", "run", "--delta", "run/delta.safetensors", "--out", "undone.safetensors") == 0
    assert run("data", "verify", "data") == 0


@pytest.mark.parametrize("select", ["{name: gps, per_neuron: 1}", "{name: grft}", "{name: spt}"])
def test_selectors_that_score(select: str) -> None:
    small = ("model.name=toy", "model.checkpoint=base.pth", "data.dir=data", "track.mlflow=false")
    chosen = ("--run-dir", "chosen", "--overwrite")
    assert run("select", "--config", "instances.yaml", *small, f"select={select}", *chosen) == 0
    whole = set(load_selection(Path("chosen/selection.safetensors")).whole)
    assert {"mask_decoder.classes.tokens", "mask_decoder.iou_token.weight"} <= whole


def test_scoring_by_the_task_and_without_practice(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("model.name=toy", "model.checkpoint=base.pth", "data.dir=data", "track.mlflow=false")
    gps = ("select={name: gps}", "score.loss=task", "--run-dir", "chosen", "--overwrite")
    assert run("select", "--config", "instances.yaml", *small, *gps) == 0
    assert run("finetune", "--config", "instances.yaml", *small, "loss.prompt_weight=0", "--dry-run") == 0
    assert run("finetune", "--config", "instances.yaml", *small, "loss.dice_weight=0", "loss.bce_weight=0") != 0
    assert "loss.bce_weight" in capsys.readouterr().err
