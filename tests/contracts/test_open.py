"""The house is open: a task and a backbone from outside, by one line of a table each, go through every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_backbone
import toy_task
import typer
from commands import run
from fastapi.testclient import TestClient
from helpers import write_data
from PIL import Image

from samtune.cli import main as cli
from samtune.files.description import Description
from samtune.models.table import MODELS
from samtune.serve.app import create_app
from samtune.sweep import trial as sweep_trial
from samtune.tasks.table import TASKS, task_of_file


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The two lines, and a folder to work in."""
    monkeypatch.setitem(TASKS, "shares", toy_task.ENTRY)
    monkeypatch.setitem(MODELS, toy_backbone.NAME, toy_backbone.ENTRY)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Noise of which a share is bright."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        (tmp_path / "data" / part).mkdir(parents=True)
        for number in range(count):
            share = round(float(rng.uniform(0.05, 0.95)), 3)
            bright = rng.random((toy_task.SIDE, toy_task.SIDE, 1)) < share
            pixels = np.where(bright, 230, 20) + rng.integers(-15, 15, (toy_task.SIDE, toy_task.SIDE, 3))
            name = tmp_path / "data" / part / f"{part}{number}_{share}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(name)
    return tmp_path / "data"


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Path:
    file = tmp_path / "shares.yaml"
    file.write_text(
        f"task: shares\ndata: {{dir: {data}}}\ntrack: {{mlflow: false}}\nrun: {{name: shares}}\n"
        "train: {epochs: 6, lr: 0.02, batch: 4}\nscore: {loss: task}\nselect: {name: gps, per_neuron: 2}\n"
    )
    return file


def test_a_task_and_a_backbone_from_outside(
    job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("finetune", "--config", job, "--run-dir", "run") == 0
    shown = capsys.readouterr().out
    assert "closeness" in shown
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["task"] == "shares"
    assert metrics["closeness"] > metrics["before"]["closeness"] + 0.02
    assert metrics["trainable"]["selected"] > 0
    assert "Closeness" in Path("run/report.html").read_text()
    merged = Path("run/merged.safetensors")
    assert (task_of_file(merged), Description.read(merged).model) == (toy_task.ShareTask, "toy_net")

    assert run("evaluate", "--checkpoint", merged, "--data", data / "test", "--out", "measured") == 0
    assert json.loads(Path("measured/metrics.json").read_text())["closeness"] == pytest.approx(metrics["closeness"])

    picture = next((data / "test").iterdir())
    assert run("predict", "--checkpoint", merged, picture, "--out", "answers") == 0
    answer = json.loads(Path("answers/shares.json").read_text())[picture.name]
    service = toy_task.ShareService.from_file(merged, device="cpu")
    with TestClient(create_app(toy_task.ShareService, service), base_url="http://127.0.0.1") as web:
        assert web.get("/v1/model").json()["task"] == "shares"
        reply = web.post("/v1/predict", files={"image": (picture.name, picture.read_bytes())})
        assert reply.json() == {"share": answer}
        assert "Which share is bright?" in web.get("/").text

    assert run("select", "--config", job, "--run-dir", "chosen", "--report") == 0
    assert Path("chosen/selection.html").is_file()
    assert run("audit", "toy_net", merged, "run/selection.safetensors") == 0
    assert run("undo", merged, "--delta", "run/delta.safetensors", "--out", "base.safetensors") == 0
    assert run("export", merged, "--out", "toy.pth") == 0
    assert run("data", "verify", data) == 0
    assert run("compare", "run") == 0
    assert "closeness" in capsys.readouterr().out


class InProcess(sweep_trial.Children):
    """Runs the commands of a sweep here, where the two lines are; a process would read its own tables."""

    def run(self, command: list[str], log: Path, threads: int) -> int:
        log.write_text(" ".join(command))
        typer.main.get_command(cli.app).main(command[3:], standalone_mode=False)  # after `python -m samtune`
        return 0


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sweep_trial, "Children", InProcess)
    yield


def test_a_sweep_of_it(job: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.yaml").write_text(
        f"name: toy\nconfig: {job}\nseeds: [0, 1]\nsteps: 6\ngrid: {{train.lr: [0.001, 0.02]}}\ngrid_extend: 0\n"
        "cells:\n  gps: {title: GPS}\n  full: {title: Full, overrides: {select: {name: full}}}\n"
    )
    assert run("sweep", "--config", "sweep.yaml", "--out", "swept") == 0
    table = capsys.readouterr().out
    assert "closeness" in table and "GPS" in table and "Full" in table
    choices = {path: json.loads(path.read_text())["choice"] for path in Path("swept/grid").rglob("cell.json")}
    assert len(choices) == 4 and all(0 < value < 1 for value in choices.values())
    assert run("compare", "swept") == 0


def test_the_backbone_alone_serves_the_task_of_masks(tmp_path: Path) -> None:
    data = write_data(tmp_path / "pairs")
    overrides = (f"data.dir={data}", "model.name=toy_net", "model.image_size=64", "train.steps=2", "track.mlflow=false")
    assert run("finetune", "--config", "polyp.yaml", *overrides, "--run-dir", "masks") == 0
    assert Description.read(Path("masks/merged.safetensors")).model == "toy_net"
    assert run("predict", "--checkpoint", "masks/merged.safetensors", data / "images", "--out", "found") == 0
    assert len(list(Path("found").glob("*.png"))) == len(list((data / "images").iterdir()))
