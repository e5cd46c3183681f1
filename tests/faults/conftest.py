"""An undisturbed run to compare with, and the count of what was tried, survived and lost."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from helpers import write_data
from job import Undisturbed, finetune, in_child, saving_always, truths

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """Imports what a run needs once, for all children; what computes is left to them: threads don't survive a fork."""
    import albumentations  # noqa: F401  seconds, where a run takes one
    import monai.losses  # noqa: F401

    import samtune.run.recipe
    import samtune.tasks.masks.task  # noqa: F401
    from samtune.models.table import MODELS

    MODELS["toy"] = toy.ENTRY  # type: ignore[index]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    home = tmp_path_factory.mktemp("undisturbed")
    before = Path.cwd()
    os.chdir(home)
    data = write_data(home / "data")
    end = in_child(finetune(data, home / "run"), prepare=saving_always)
    assert end.code == 0, end.said
    yield Undisturbed(data, truths(home / "run"))
    os.chdir(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints tried, survived and lost by file."""
    tried, lost = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if HERE.name in report.nodeid and (report.when == "call" or outcome == "error"):
                name = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_").replace("_", " ")
                tried[name] += 1
                lost[name] += outcome != "passed"
    if tried:
        terminalreporter.section("faults")
        lines = [(name, tried[name], tried[name] - lost[name], lost[name]) for name in sorted(tried)]
        lines.append(("all", tried.total(), tried.total() - lost.total(), lost.total()))
        for line in [("", "tried", "survived", "lost"), *lines]:
            terminalreporter.write_line("{:<28}{:>8}{:>10}{:>6}".format(*line))
