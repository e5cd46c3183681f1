"""A command line in this process."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import pytest

from samtune.cli import main as cli


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are the test runner's
    monkeypatch.setenv("COLUMNS", "300")
    logger = logging.getLogger("samtune")
    for name in ("propagate", "handlers", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))  # as it was, after the test

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run
