"""`samtune sync` of a sweep's folder: its own run in MLflow first, then its runs under it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run, write_sweep

from samtune.base.tracking.sync import Delivered
from samtune.errors import ConfigError
from samtune.sweep import sync as sync_module
from samtune.sweep.sync import is_sweep, sync_sweep


class FakeRun:
    """A run in an MLflow that remembers."""

    kept: dict[str, float]
    ended: list[str]

    def __init__(self, store: object, about: Any, *, known: str | None = None) -> None:
        self.about, self.known, self.run_id = about, known, known or "new"
        FakeRun.last = self

    def value(self, name: str) -> float | None:
        return self.kept.get(name)

    def values(self, values: Mapping[str, float]) -> None:
        self.kept.update(values)

    def end(self, status: str) -> None:
        self.ended.append(status)

    last: Any = None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The folders that were told of one by one, with their parents."""
    told: list[tuple[str, str | None]] = []

    def sync(folder: Path, *, parent: str | None = None) -> Delivered:
        told.append((folder.name, parent))
        return Delivered(3, 1, "FINISHED", folder.name)

    FakeRun.kept, FakeRun.ended = {}, []
    monkeypatch.setattr(sync_module, "MlflowRun", FakeRun)
    monkeypatch.setattr(sync_module, "find_store", lambda: None)
    monkeypatch.setattr(sync_module, "sync", sync)
    return told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_sweep(tmp_path / "demo", {"gps": "GPS"})
    for name, dice in (("cells/gps_0", 0.5), ("cells/gps_1", 0.7), ("grid/gps_0.001", 0.1)):
        write_run(folder / name, [dice] * 4, name=name)
        (folder / name / "config.yaml").write_text("track: {experiment: mine}\n")
        (folder / name / "history.jsonl").write_text("")
    return folder


def test_a_sweep_is_told_with_all_its_runs_once(folder: Path, told: list[tuple[str, str | None]]) -> None:
    assert is_sweep(folder) and not is_sweep(folder / "cells")
    first = dict(sync_sweep(folder))
    assert list(first) == [folder, folder / "cells/gps_0", folder / "cells/gps_1", folder / "grid/gps_0.001"]
    assert told == [("gps_0", "new"), ("gps_1", "new"), ("gps_0.001", "new")]
    assert FakeRun.kept["gps/mDice"] == pytest.approx(0.6)  # of the table's seeds, not of the grid
    assert (FakeRun.last.about.experiment, FakeRun.last.about.name, FakeRun.ended) == ("mine", "demo", ["FINISHED"])
    assert first[folder].numbers == len(FakeRun.kept) > 0
    assert (folder / "mlflow_run.txt").read_text().strip() == "new"
    again = dict(sync_sweep(folder))
    assert FakeRun.last.known == "new" and again[folder].numbers == 0


def test_a_sweep_with_a_failed_run_has_failed(folder: Path, told: list[tuple[str, str | None]]) -> None:
    (folder / "cells/gps_1/cell.json").unlink()
    (_, own), *_ = sync_sweep(folder)
    assert own.status == "FAILED" and FakeRun.kept["gps/mDice"] == pytest.approx(0.5)


def test_a_server_that_does_not_take_it_is_a_users_mistake(
    folder: Path, told: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no such server")

    monkeypatch.setattr(sync_module, "MlflowRun", refuse)
    with pytest.raises(ConfigError, match=r"MLflow does not take .*demo.*Check MLFLOW_TRACKING_URI"):
        list(sync_sweep(folder))
    assert told == [] and json.loads((folder / "sweep.yaml").read_text())
