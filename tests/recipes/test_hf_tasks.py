"""SAM 2 and SAM 3 of transformers that tell classes and objects apart, through every command and the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from class_maps import write_maps
from commands import run
from fastapi.testclient import TestClient
from object_maps import write_objects
from PIL import Image
from toy_hf import toy_hf

from samtune.data.pictures import read_image
from samtune.models.classes import KEPT, PREFIX
from samtune.models.hf.families import FAMILIES
from samtune.models.table import build_model
from samtune.serve.app import create_app
from samtune.sweep.plan import first_values, plan
from samtune.sweep.run import check_rows
from samtune.sweep.settings import load_sweep
from samtune.tasks.instances.predict import InstancePredictor
from samtune.tasks.prompted import predict_prompted
from samtune.tasks.semantic.predict import MapPredictor
from samtune.tasks.table import task_of_file

WRITE = {"semantic": write_maps, "instances": write_objects}
COUNTS = {"semantic": 3, "instances": 3}  # classes, maps


class Made(NamedTuple):
    """A job that ran: its family, its task, and the folder with `data`, `base` and `run`."""

    family: str
    task: str
    place: Path

    @property
    def merged(self) -> Path:
        return self.place / "run" / "merged.safetensors"

    @property
    def image(self) -> Path:
        return next((self.place / "data" / "test" / "images").iterdir())

    def json(self, *names: str) -> Any:
        return json.loads(self.place.joinpath(*names).read_text())


JOBS = [
    ("sam2", "semantic"),
    ("sam3", "instances"),
    pytest.param(("sam2", "instances"), marks=pytest.mark.slow),
    pytest.param(("sam3", "semantic"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=JOBS, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of a few steps."""
    family, task = request.param
    place = tmp_path_factory.mktemp(f"{family}_{task}")
    data = WRITE[task](place / "data")
    toy_hf(family).save_stock(place / "base")
    model = (f"model.name={family}", f"model.checkpoint={place / 'base'}", f"data.dir={data}", "select={name: gps}")
    few = ("train.epochs=3", "train.batch=2", "train.lr=0.003", "track.mlflow=false", "eval.overlays=1")
    assert run("finetune", "--config", f"{task}.yaml", *model, *few, "--run-dir", place / "run") == 0
    return Made(family, task, place)


def test_what_a_run_leaves(made: Made) -> None:
    metrics = made.json("run", "metrics.json")
    assert metrics["task"] == made.task == task_of_file(made.merged).name
    assert metrics["trainable"]["head"] > 0 and metrics["trainable"]["selected"] > 0
    if made.task == "instances":
        assert set(metrics["prompts"]) == {"none", "box", "point", "points3"} and {"AP50", "PQ"} <= set(
            metrics["metrics"]
        )
    else:
        assert 0 < metrics["mIoU"] <= 1
    lines = (made.place / "run" / "history.jsonl").read_text().splitlines()
    losses = [event["loss"] for event in map(json.loads, lines) if event["split"] == "train"]
    assert losses[-1] < losses[0]
    base, tuned = toy_hf(made.family).net.state_dict(), load(made).net.state_dict()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    heads = [name for name in moved if name.startswith(KEPT)]
    assert bool(heads) == (made.task == "instances")  # the IoU head practises there
    assert [name for name in moved if name.startswith("vision_encoder.backbone.")]
    assert tuned[f"{PREFIX}tokens"].shape[0] == COUNTS[made.task]


def test_the_folder_for_transformers_answers_prompts_and_says_what_it_lacks(made: Made) -> None:
    loader: Any = getattr(transformers, f"{FAMILIES[made.family].prefix}Model")
    folder = made.place / "run" / "transformers"
    _, account = loader.from_pretrained(folder, output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"]
    assert "7 tensors of the tuned model are left out" in (folder / "README.md").read_text()
    image, box = read_image(made.image), {"boxes_xyxy": [4, 4, 30, 30]}
    ours = predict_prompted(load(made), image, **box)
    theirs = predict_prompted(build_model(made.family, checkpoint=folder), image, **box)
    np.testing.assert_allclose(ours.probability, theirs.probability, atol=1e-5)


def load(made: Made) -> Any:
    """Returns the tuned model."""
    kind: Any = InstancePredictor if made.task == "instances" else MapPredictor
    return kind.from_file(made.merged, device="cpu").model


def test_evaluate_and_predict(made: Made) -> None:
    place = made.place
    assert run("evaluate", "--checkpoint", place / "run", "--data", place / "data", "--out", place / "measured") == 0
    measured, own = made.json("measured", "metrics.json"), made.json("run", "metrics.json")
    assert measured["metrics"] == pytest.approx(own["metrics"], abs=1e-6)
    ask: tuple[object, ...] = ("predict", "--checkpoint", place / "run", made.image, "--out")
    assert run(*ask, place / "answers", "--overlay") == 0
    assert Image.open(place / "answers" / f"{made.image.stem}.png").size == (48, 40)
    assert run(*ask, place / "boxed", "--box", "4,4,30,30") == 0
    if made.task == "instances":
        assert run(*ask, place / "grid", "--point", "4x4", "--format", "coco") == 0
        assert "annotations" in made.json("grid", "predictions.json")


def test_deltas_and_audits(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    base, files, out = made.place / "base", made.place / "run", made.place / "again"
    assert run("audit", base, files, files / "selection.safetensors") == 0
    assert "unselected entries bit-equal" in capsys.readouterr().out
    assert run("apply", base, "--delta", files / "delta.safetensors", "--out", out / "merged.safetensors") == 0
    assert run("diff", out / "merged.safetensors", files) == 0
    assert run("undo", files, "--delta", files / "delta.safetensors", "--out", out / "base.safetensors") == 0
    assert run("audit", out / "base.safetensors", files, files / "selection.safetensors") == 0
    assert capsys.readouterr().out.count("no differences") == 1
    assert run("export", files, "--format", "transformers", "--out", out / "hub") == 0
    assert run("export", files, "--format", "pth", "--out", out / "x.pth") != 0
    assert "no class tokens" in capsys.readouterr().err


def test_the_server(made: Made) -> None:
    kind = task_of_file(made.merged).service
    service = kind.from_file(made.merged, device="cpu")
    with TestClient(create_app(kind, service), base_url="http://127.0.0.1") as web:
        assert web.get("/v1/model").json()["model"] == made.family
        assert web.get("/").status_code == 200

        def ask(**fields: str) -> Any:
            return web.post("/v1/predict", files={"image": ("x.png", made.image.read_bytes())}, data=fields)

        plain, told, boxed = ask(), ask(format="json"), ask(box="[4,4,30,30]")
        assert plain.headers["X-Samtune-Kind"] == {"semantic": "classes", "instances": "objects"}[made.task]
        assert {"semantic": "classes", "instances": "objects"}[made.task] in told.json()
        assert boxed.status_code == 200 and "X-Samtune-Kind" not in boxed.headers


def sweep_in(folder: Path) -> Path:
    """Writes a sweep of two methods on instances, with its data."""
    toy_hf("sam2").save_stock(folder / "base")
    data = write_objects(folder / "data", {"train": 2, "val": 1, "test": 1})
    cells = {name: {"title": name, "overrides": {"select": {"name": name}}} for name in ("gps", "lora")}
    base = {"model.name": "sam2", "model.checkpoint": str(folder / "base"), "data.dir": str(data)}
    about = {"name": "two", "config": "instances.yaml", "overrides": base, "cells": cells, "seeds": [0], "steps": 1}
    (folder / "sweep.yaml").write_text(json.dumps(about))
    return folder / "sweep.yaml"


def test_a_sweep_can_be_planned(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_in(tmp_path))
    planned = plan(sweep, first_values(sweep))
    check_rows(planned)
    assert len(planned) == 2


@pytest.mark.slow
def test_a_sweep_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("track.mlflow=false", "train.batch=2", "--jobs", "1")
    assert run("sweep", "--config", sweep_in(tmp_path), *few, "--out", tmp_path / "out") == 0
    assert run("compare", tmp_path / "out") == 0
    assert "AP50" in capsys.readouterr().out
