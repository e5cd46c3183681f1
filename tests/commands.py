"""Commands of samtune in this process."""

from __future__ import annotations

import pytest

from samtune.cli import main as cli


def run(*arguments: object) -> int:
    """Runs a command here, and returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)
