"""`samtune sync`: MLflow gets later what it lacks, once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import TheRun, log_to, wait_for_id

from samtune.base.folder import locked
from samtune.base.tracking import sync as sync_module
from samtune.base.tracking.mlflow_run import MlflowRun
from samtune.base.tracking.sync import read_history, sync
from samtune.errors import ConfigError, RunFolderError


def run_without_mlflow(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"run: {{name: {folder.name}}}\ntrack: {{experiment: tests}}\nselect: {{name: gps}}\ntrain: {{lr: 0.5}}\n"
    )
    with log_to(folder, mlflow=False) as log:
        log.event({"step": 0, "split": "before", "mDice": 0.1})
        for step in range(3):
            log.event({"step": step, "epoch": 1, "split": "train", "loss": 1 / (1 + step), "lr": 0.1})
        log.event({"step": 3, "split": "test", "mDice": 0.9})
    (folder / "overlays").mkdir()
    (folder / "overlays" / "a.png").write_bytes(b"png")
    (folder / "merged.safetensors").write_bytes(b"weights")


def test_a_run_that_was_never_tracked_is_told_once(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    folder = tmp_path / "never"
    run_without_mlflow(folder)
    told = sync(folder)
    # mDice twice; loss, lr and epoch of three steps; config, overlay, and the weights by path and hash
    assert (told.numbers, told.files, told.status) == (11, 3, "FINISHED")
    run = the_run("never")
    assert run.info.run_id == told.run_id
    assert run.info.status == "FINISHED"
    assert (run.data.params["train.lr"], run.data.metrics["test/mDice"]) == ("0.5", 0.9)
    events = read_history(folder / "history.jsonl")
    assert run.info.start_time == int(events[0]["time"] * 1000)
    assert run.info.end_time == int(events[-1]["time"] * 1000)
    assert [item.path for item in client.list_artifacts(told.run_id)] == ["config.yaml", "overlays"]
    assert "file/merged.safetensors" in run.data.tags

    again = sync(folder)
    assert (again.numbers, again.files, again.run_id) == (0, 0, told.run_id)
    assert the_run("never").info.end_time == run.info.end_time
    assert len(client.get_metric_history(told.run_id, "train/loss")) == 3


def test_a_run_gets_the_parent_that_it_lacked(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    folder = tmp_path / "lacking"
    run_without_mlflow(folder)
    sync(folder)
    parent = the_run("lacking").info.run_id  # any id will do
    sync(folder, parent=parent)
    assert the_run("lacking").data.tags["mlflow.parentRunId"] == parent


def test_a_run_that_was_tracked_lacks_nothing(at_home: Path, the_run: TheRun, tmp_path: Path) -> None:
    folder = tmp_path / "tracked"
    folder.mkdir()
    text = "run: {name: tracked}\ntrack: {experiment: tests}\nselect: {name: gps}\n"
    (folder / "config.yaml").write_text(text)
    with log_to(folder, name="tracked") as log:
        log.event({"step": 1, "split": "val", "mDice": 0.5})
        log.artifacts(sorted(folder.iterdir()))
    told = sync(folder)
    assert (told.numbers, told.files, told.run_id) == (0, 0, log.run_id)
    assert the_run("tracked").info.status == "FINISHED"


def test_a_run_from_before_is_told_as_finished_if_it_has_a_result(at_home: Path, tmp_path: Path) -> None:
    for name, file, status in (("old", "report.html", "FINISHED"), ("older", "selection.safetensors", "KILLED")):
        folder = tmp_path / name
        run_without_mlflow(folder)
        (folder / "tracking.json").unlink()
        (folder / file).write_text("x")
        assert sync(folder).status == status
        assert sync(folder).numbers == 0


def killed_run(folder: Path) -> str:
    """Runs a training in another process, and kills it; returns its id in MLflow."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def train() -> None:
        with locked(folder), log_to(folder, name=folder.name) as log:
            log.event({"step": 1, "split": "val", "mDice": 0.5})
            theirs.send(wait_for_id(log))
            signal.pause()

    process = context.Process(target=train)
    process.start()
    assert ours.poll(60), "it did not start"
    run_id = str(ours.recv())
    assert process.pid is not None
    with pytest.raises(RunFolderError, match="in use by process"):
        sync(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    return run_id


def test_a_killed_run_is_told_as_killed(client: Any, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {name: killed}\ntrack: {experiment: tests}\n")
    run_id = killed_run(folder)
    assert client.get_run(run_id).info.status == "RUNNING"
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"time": 1, "spl')  # it was writing
    told = sync(folder)
    assert (told.status, told.run_id) == ("KILLED", run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["val/mDice"]) == ("KILLED", 0.5)


def test_the_next_run_ends_killed_ones_and_no_others(client: Any, tmp_path: Path) -> None:
    dead = killed_run(tmp_path / "dead")
    with locked(tmp_path), log_to(tmp_path, name="alive") as alive:
        alive_id = wait_for_id(alive)
        with log_to(tmp_path / "next", name="next"):
            pass
        assert client.get_run(dead).info.status == "KILLED"
        assert client.get_run(alive_id).info.status == "RUNNING"


def test_what_can_not_be_told_is_explained(at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"is no run folder: it has no history\.jsonl\. Name what"):
        sync(tmp_path)
    run_without_mlflow(tmp_path / "r")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"MLflow does not take .* Check MLFLOW_TRACKING_URI, then the same command"):
        sync(tmp_path / "r")


def test_weights_go_to_a_store_elsewhere(tmp_path: Path, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Elsewhere(MlflowRun):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._is_local = False
            monkeypatch.setattr(self.client, "log_artifact", lambda _, path, __: uploaded.append(Path(path).name))

    monkeypatch.setattr(sync_module, "MlflowRun", Elsewhere)
    run_without_mlflow(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "delta.safetensors").write_bytes(b"more than weights")
    sync(tmp_path / "elsewhere")
    assert uploaded == ["a.png", "merged.safetensors", "delta.safetensors", "config.yaml"]  # by size
