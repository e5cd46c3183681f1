"""A command line in this process, and a cache that no other test sees."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from helpers import RunCommand

from samtune.cli import main as cli


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in an empty folder with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs a command; returns its exit code and stderr, which never shows a traceback."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are the test runner's
    logger = logging.getLogger("samtune")
    for name in ("propagate", "handlers", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))  # as it was, after the test

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        _, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), err

    return run
