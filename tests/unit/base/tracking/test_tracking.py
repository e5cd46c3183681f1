"""`history.jsonl` and MLflow, when both work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import PARAMS, TheRun, history, log_to, wait_for_id

from samtune.base.disk import write_text
from samtune.base.tracking import RunLog, SweepLog, flatten, mlflow_run
from samtune.errors import DiskError


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
    at_home: Path, client: Any, the_run: TheRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_run, "FILE_LIMIT", 10)
    folder = tmp_path / "run"
    (folder / "overlays").mkdir(parents=True)
    (folder / "overlays" / "a.png").write_bytes(b"png")
    (folder / "config.yaml").write_text("a: 1")
    (folder / "big.bin").write_bytes(bytes(11))
    (folder / "merged.safetensors").write_bytes(b"small")
    (folder / "checkpoints").mkdir()
    with log_to(folder, mlflow=True, name="good") as log:
        for step in range(3):
            log.event({"step": step, "epoch": 1, "split": "train", "loss": 1 / (step + 1)})
        log.event({"step": 3, "epoch": 1, "split": "train", "loss": math.nan})
        log.event({"step": 3, "epoch": 1, "split": "val", "mDice": 0.25, "mIoU": 0.2})
        log.event({"step": 4, "epoch": 2, "split": "train", "loss": 0.1})
        log.artifacts(sorted(folder.iterdir()))
    run = the_run("good")
    assert run.info.status == "FINISHED"
    assert run.data.params["run.seed"] == "3"
    assert run.data.params["data.long"] == "y" * 6000
    assert run.data.metrics["train/loss"] == 0.1  # logged after the last validation, at the end
    assert (run.data.metrics["val/mDice"], run.data.metrics["val/mIoU"]) == (0.25, 0.2)
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3), (4, 0.1)]  # NaN is left out
    assert run.info.artifact_uri.startswith((at_home / "runs" / "mlartifacts").as_uri())
    names = [item.path for item in client.list_artifacts(run.info.run_id)]
    assert names == ["config.yaml", "overlays"]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "overlays")] == ["overlays/a.png"]
    # too large, or weights whose store is on this disk
    zeros = "71b6c1d53832f789a7f2435a7c629245fa3761ad8487775ebf4957330213a706"
    assert run.data.tags["file/big.bin"] == f"{folder / 'big.bin'} sha256={zeros}"
    assert run.data.tags["file/merged.safetensors"].startswith(f"{folder / 'merged.safetensors'} sha256=")


def test_a_crash_ends_the_run_as_failed_and_a_signal_as_killed(at_home: Path, the_run: TheRun, tmp_path: Path) -> None:
    for name, error in (("crash", RuntimeError("bug")), ("stopped", KeyboardInterrupt()), ("ended", SystemExit(143))):
        with pytest.raises(type(error)), log_to(tmp_path / name, mlflow=True, name=name) as log:
            log.event({"step": 1, "split": "train", "loss": 0.5})
            raise error
        assert len(history(tmp_path / name)) == 1
    assert the_run("crash").info.status == "FAILED"
    assert the_run("crash").data.metrics["train/loss"] == 0.5
    assert the_run("stopped").info.status == the_run("ended").info.status == "KILLED"


def sweep_log(folder: Path) -> SweepLog:
    folder.mkdir(exist_ok=True)
    return SweepLog(folder, mlflow=True, experiment="tests", name=folder.name, params={"seeds": [0, 1]})


def the_sweep(client: Any, name: str) -> Any:
    known = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([known.experiment_id], f"attributes.run_name = '{name}'")
    return run


def test_runs_belong_to_their_sweep(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    with sweep_log(tmp_path / "sweep") as sweep:
        with RunLog(
            tmp_path, mlflow=True, experiment="tests", run_name="child", params=PARAMS, parent=sweep.run_id
        ) as log:
            log.event({"step": 1, "split": "val", "top1": 0.5})
        sweep.end({"cub/gps/top1": 0.75}, failed=False)
    parent = the_sweep(client, "sweep")
    assert parent.info.run_id == sweep.run_id == the_run("child").data.tags["mlflow.parentRunId"]
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"cub/gps/top1": 0.75})
    assert parent.data.params == {"seeds": "[0, 1]"}


def test_a_sweep_goes_on_under_the_same_run(client: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sweep_log(tmp_path / "again") as first:
        raise RuntimeError("bug")
    assert the_sweep(client, "again").info.status == "FAILED"
    with sweep_log(tmp_path / "again") as second:
        assert second.run_id == first.run_id
        assert the_sweep(client, "again").info.status == "RUNNING"
        second.end({}, failed=True)
    assert the_sweep(client, "again").info.status == "FAILED"
    (tmp_path / "again" / "mlflow_run.txt").write_text("0" * 32)  # of another server
    with sweep_log(tmp_path / "again") as third:
        assert third.run_id not in (None, first.run_id)


def test_a_sweep_without_tracking_has_no_run(tmp_path: Path) -> None:
    with SweepLog(tmp_path, mlflow=False, experiment="tests", name="none", params={}) as log:
        log.end({"a": 1.0}, failed=False)
    assert log.run_id is None and list(tmp_path.iterdir()) == []


def test_mlflow_gets_every_metric_of_a_long_epoch(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    """400 steps are 1,200 numbers, and MLflow takes 1,000 at once."""
    with log_to(tmp_path, mlflow=True, name="long") as log:
        for step in range(400):
            log.event({"step": step, "epoch": 2, "split": "train", "loss": step / 7, "lr": 1e-3 / (1 + step)})
        log.event({"step": 400, "epoch": 2, "split": "val", "mDice": 0.5})
    run = the_run("long").info.run_id
    expected: dict[str, Callable[[int], float]] = {
        "loss": lambda step: step / 7,
        "lr": lambda step: 1e-3 / (1 + step),
        "epoch": lambda step: 2.0,
    }
    for name, value in expected.items():
        found = client.get_metric_history(run, f"train/{name}")
        assert [(m.step, m.value) for m in found] == [(step, value(step)) for step in range(400)], name


@pytest.mark.parametrize("number", range(8))
def test_eight_runs_that_begin_at_once_on_a_new_database_are_all_tracked(number: int, the_run: TheRun) -> None:
    run = the_run(f"at_once_{number}")
    assert (run.info.status, run.data.metrics["val/mDice"]) == ("FINISHED", 0.2)


def test_a_run_says_what_it_is(at_home: Path, the_run: TheRun, tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", f"# base_hash=0 splits={'ab' * 32}\n")
    with log_to(tmp_path, name="named"):
        pass
    run = the_run("named")
    assert run.info.run_name == "named gps"
    expected = {"samtune.method": "gps", "samtune.model": "sam_lite", "samtune.task": "segmentation"}
    assert {name: run.data.tags[name] for name in expected} == expected
    assert run.data.tags["samtune.folder"] == str(tmp_path)
    assert {"mlflow.source.name", "mlflow.source.type", "mlflow.user"} <= run.data.tags.keys()
    (inputs,) = run.inputs.dataset_inputs
    assert (inputs.dataset.name, inputs.dataset.digest, inputs.dataset.source) == ("pictures", "ab" * 18, "pictures")


def test_a_run_that_goes_on_has_no_event_twice(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    """Killed after step 4 and resumed from step 2: the file and MLflow have each step once."""
    with pytest.raises(KeyboardInterrupt), log_to(tmp_path, name="resumed") as first:
        for step in range(5):
            first.event({"step": step, "split": "val", "mDice": step / 10})
        raise KeyboardInterrupt
    assert the_run("resumed").info.status == "KILLED"
    with log_to(tmp_path, name="resumed", history=history(tmp_path)[:3]) as second:
        assert [event["step"] for event in history(tmp_path)] == [0, 1, 2]
        for step in range(3, 7):
            second.event({"step": step, "split": "val", "mDice": step / 10})
        assert wait_for_id(second) == first.run_id
    assert [event["step"] for event in history(tmp_path)] == list(range(7)) == [e["step"] for e in second.history]
    run = the_run("resumed")
    found = client.get_metric_history(run.info.run_id, "val/mDice")
    assert [(m.step, m.value) for m in found] == [(step, step / 10) for step in range(7)]
    assert run.info.status == "FINISHED"


def test_a_run_goes_on_under_a_known_id(client: Any, the_run: TheRun, tmp_path: Path) -> None:
    with log_to(tmp_path / "one", name="known") as first:
        first.event({"step": 1, "split": "val", "mDice": 0.5})
    with log_to(tmp_path / "two", name="known", known=first.run_id, history=first.history) as second:
        second.event({"step": 2, "split": "val", "mDice": 0.6})
    assert second.run_id == first.run_id == the_run("known").info.run_id
    assert len(client.get_metric_history(first.run_id, "val/mDice")) == 2


def test_a_full_disk_ends_the_run_as_failed(at_home: Path, the_run: TheRun, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"history\.jsonl"), log_to(tmp_path, name="full") as log:
        log.event({"step": 1, "split": "val", "mDice": 0.5})
        wait_for_id(log)
        log._file.close()
        log._file = Path("/dev/full").open("a")  # noqa: SIM115  the log closes it
        log.event({"step": 2, "split": "val", "mDice": 0.6})
    assert the_run("full").info.status == "FAILED"
    assert [event["step"] for event in log.history] == [1]
