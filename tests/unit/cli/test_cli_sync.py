"""`samtune sync` and `samtune --version`: what they print, and their exit codes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from samtune.base.tracking import sync
from samtune.cli import main as cli
from samtune.errors import ConfigError
from samtune.sweep import sync as sweep_sync


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are the test runner's
    logger = logging.getLogger("samtune")
    for name in ("propagate", "handlers", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    yield


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


def test_the_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of("--version") == 0
    assert capfd.readouterr().out == f"samtune {version('samtune')}\n"


def test_sync_says_what_it_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = {"one": sync.Delivered(12, 3, "FINISHED", "a1"), "two": sync.Delivered(0, 0, "KILLED", "b2")}
    monkeypatch.setattr(sync, "sync", lambda folder: told[folder.name])
    monkeypatch.chdir(tmp_path)
    assert code_of("sync", "one", "two") == 0
    assert capfd.readouterr().out.splitlines() == [
        "one: 12 numbers and 3 files told; FINISHED, run a1",
        "two: nothing to tell; KILLED, run b2",
    ]


def test_sync_of_a_sweep_tells_of_each_folder(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "sweep.yaml").write_text("name: demo\n")
    lacked = {"": sync.Delivered(2, 0, "FINISHED", "p"), "cells/gps_0": sync.Delivered(0, 0, "FINISHED", "c")}
    monkeypatch.setattr(sweep_sync, "sync_sweep", lambda folder: [(folder / name, lacked[name]) for name in lacked])
    monkeypatch.chdir(tmp_path)
    assert code_of("sync", "demo") == 0
    assert capfd.readouterr().out.splitlines() == [
        "demo: 2 numbers and 0 files told; FINISHED, run p",
        "demo/cells/gps_0: nothing to tell; FINISHED, run c",
    ]


def test_sync_of_no_run_is_a_users_mistake(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert code_of("sync", str(tmp_path)) == ConfigError.exit_code
    (line,) = capfd.readouterr().err.splitlines()
    assert "is no run folder: it has no history.jsonl" in line
