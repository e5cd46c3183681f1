"""`history.jsonl` and MLflow: one database for all tests of the file, because making one takes seconds."""

from __future__ import annotations

import json
import logging
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samtune.base import tracking
from samtune.base.tracking import RunLog, SweepLog, flatten

PARAMS = {"run": {"seed": 3, "name": "r"}, "data": {"dir": "x", "long": "y" * 7000}, "task": "segmentation"}


def log_to(folder: Path, *, mlflow: bool, name: str = "r") -> RunLog:
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(folder, mlflow=mlflow, experiment="tests", run_name=name, params=PARAMS)


def history(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder in which MLflow's database is made."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def client(home: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{home / 'runs' / 'mlflow.db'}")


def the_run(home: Path, name: str) -> Any:
    known = client(home).get_experiment_by_name("tests")
    (run,) = client(home).search_runs([known.experiment_id], f"attributes.run_name = '{name}'")
    return run


def test_history_has_one_object_per_event(tmp_path: Path) -> None:
    start = time.time()
    with log_to(tmp_path, mlflow=False) as log:
        log.event({"step": 1, "epoch": 1, "split": "train", "loss": 0.5, "lr": 1e-3})
        first = history(tmp_path)  # on disk at once: a crash loses nothing
        log.event({"step": 1, "epoch": 1, "split": "val", "mDice": 0.25})
    assert len(first) == 1
    assert first[0] | {"time": 0} == {"time": 0, "step": 1, "epoch": 1, "split": "train", "loss": 0.5, "lr": 1e-3}
    assert start - 0.01 <= first[0]["time"] <= time.time() + 1e-3  # it is rounded to ms
    assert [event["split"] for event in history(tmp_path)] == ["train", "val"]
    assert log.history == history(tmp_path)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with log_to(tmp_path, mlflow=False) as log:
        log.event({"step": 1, "split": "train", "loss": math.nan, "lr": math.inf})
    assert history(tmp_path)[0]["loss"] is None
    assert history(tmp_path)[0]["lr"] is None


def test_flatten() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}
    assert flatten(nested) == {"a.b.c": "1", "a.d": "None", "e": "[1, 2]"}


def test_mlflow_gets_params_metrics_and_artifacts(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MLFLOW_FILE_LIMIT", 10)
    folder = tmp_path / "run"
    (folder / "overlays").mkdir(parents=True)
    (folder / "overlays" / "a.png").write_bytes(b"png")
    (folder / "config.yaml").write_text("task: x")
    (folder / "big.bin").write_bytes(bytes(11))
    with log_to(folder, mlflow=True, name="good") as log:
        for step in range(3):
            log.event({"step": step, "epoch": 1, "split": "train", "loss": 1 / (step + 1)})
        log.event({"step": 3, "epoch": 1, "split": "train", "loss": math.nan})
        log.event({"step": 3, "epoch": 1, "split": "val", "mDice": 0.25, "mIoU": 0.2})
        log.event({"step": 4, "epoch": 2, "split": "train", "loss": 0.1})
        log.artifacts([folder / "config.yaml", folder / "overlays", folder / "big.bin"])
    run = the_run(at_home, "good")
    assert run.info.status == "FINISHED"
    assert run.data.params["run.seed"] == "3"
    assert run.data.params["data.long"] == "y" * 6000
    assert run.data.metrics["train/loss"] == 0.1  # logged after the last validation, at the end
    assert (run.data.metrics["val/mDice"], run.data.metrics["val/mIoU"]) == (0.25, 0.2)
    losses = client(at_home).get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3), (4, 0.1)]  # NaN is left out
    assert run.info.artifact_uri.startswith((at_home / "runs" / "mlartifacts").as_uri())
    names = [item.path for item in client(at_home).list_artifacts(run.info.run_id)]
    assert names == ["config.yaml", "overlays"]
    assert [item.path for item in client(at_home).list_artifacts(run.info.run_id, "overlays")] == ["overlays/a.png"]
    assert run.data.tags["file/big.bin"] == str(folder / "big.bin")


def test_a_crash_ends_the_run_as_failed_and_ctrl_c_as_killed(at_home: Path, tmp_path: Path) -> None:
    for name, error in (("crash", RuntimeError("bug")), ("stopped", KeyboardInterrupt())):
        with pytest.raises(type(error)), log_to(tmp_path / name, mlflow=True, name=name) as log:
            log.event({"step": 1, "split": "train", "loss": 0.5})
            raise error
        assert len(history(tmp_path / name)) == 1
    assert the_run(at_home, "crash").info.status == "FAILED"
    assert the_run(at_home, "crash").data.metrics["train/loss"] == 0.5
    assert the_run(at_home, "stopped").info.status == "KILLED"


def sweep_log(folder: Path) -> SweepLog:
    folder.mkdir(exist_ok=True)
    return SweepLog(folder, mlflow=True, experiment="tests", name=folder.name, params={"seeds": [0, 1]})


def test_runs_belong_to_their_sweep(at_home: Path, tmp_path: Path) -> None:
    with sweep_log(tmp_path / "sweep") as sweep:
        with RunLog(
            tmp_path, mlflow=True, experiment="tests", run_name="child", params=PARAMS, parent=sweep.run_id
        ) as log:
            log.event({"step": 1, "split": "val", "top1": 0.5})
        sweep.end({"cub/gps/top1": 0.75}, failed=False)
    parent = the_run(at_home, "sweep")
    assert parent.info.run_id == sweep.run_id == the_run(at_home, "child").data.tags["mlflow.parentRunId"]
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"cub/gps/top1": 0.75})
    assert parent.data.params == {"seeds": "[0, 1]"}


def test_a_sweep_goes_on_under_the_same_run(at_home: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sweep_log(tmp_path / "again") as first:
        raise RuntimeError("bug")
    assert the_run(at_home, "again").info.status == "FAILED"
    with sweep_log(tmp_path / "again") as second:
        assert second.run_id == first.run_id
        assert the_run(at_home, "again").info.status == "RUNNING"
        second.end({}, failed=True)
    assert the_run(at_home, "again").info.status == "FAILED"
    (tmp_path / "again" / "mlflow_run.txt").write_text("0" * 32)  # of another server
    with sweep_log(tmp_path / "again") as third:
        assert third.run_id not in (None, first.run_id)


def test_a_sweep_without_tracking_has_no_run(tmp_path: Path) -> None:
    with SweepLog(tmp_path, mlflow=False, experiment="tests", name="none", params={}) as log:
        log.end({"a": 1.0}, failed=False)
    assert log.run_id is None and list(tmp_path.iterdir()) == []


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["dead", "silent", "nonsense", "unwritable"])
def test_a_broken_tracker_warns_once_and_stops_nothing(
    kind: str, silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    uris = {"dead": "http://127.0.0.1:9", "silent": silent_server, "nonsense": "gopher://x"}
    if kind in uris:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[kind])
    else:
        (tmp_path / "runs").write_text("a file where the folder should be")
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="samtune.base.tracking"), log_to(tmp_path / "r", mlflow=True) as log:
        for step in range(3):
            log.event({"step": step, "split": "val", "mDice": 0.5})
        log.artifacts([tmp_path / "r" / "history.jsonl"])
    assert time.monotonic() - start < 5
    (message,) = caplog.messages
    assert message.startswith("MLflow does not take this run (")
    assert message.endswith("history.jsonl has everything")
    assert len(history(tmp_path / "r")) == 3


def test_a_tracker_that_breaks_later_warns_once(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("database is locked")

    with (
        caplog.at_level(logging.WARNING, logger="samtune.base.tracking"),
        log_to(tmp_path, mlflow=True, name="late") as log,
    ):
        monkeypatch.setattr(tracking._MlflowRun, "metrics", refuse)
        log.event({"step": 1, "split": "val", "mDice": 0.5})
        log.event({"step": 2, "split": "val", "mDice": 0.6})
    assert len(caplog.messages) == 1
    assert "OSError: database is locked" in caplog.text
    assert len(history(tmp_path)) == 2


def test_mlflow_gets_every_metric_of_a_long_epoch(at_home: Path, tmp_path: Path) -> None:
    """400 steps are 1,200 numbers, and MLflow takes 1,000 at once."""
    with log_to(tmp_path, mlflow=True, name="long") as log:
        for step in range(400):
            log.event({"step": step, "epoch": 2, "split": "train", "loss": step / 7, "lr": 1e-3 / (1 + step)})
        log.event({"step": 400, "epoch": 2, "split": "val", "mDice": 0.5})
    run = the_run(at_home, "long").info.run_id
    expected = {"loss": lambda step: step / 7, "lr": lambda step: 1e-3 / (1 + step), "epoch": lambda step: 2.0}
    for name, value in expected.items():
        found = client(at_home).get_metric_history(run, f"train/{name}")
        assert [(m.step, m.value) for m in found] == [(step, value(step)) for step in range(400)], name
