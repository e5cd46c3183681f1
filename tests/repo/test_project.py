"""The project file promises what the other documents say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_has_a_range_and_a_tested_version(project: dict[str, Any]) -> None:
    pinned = dict(pin.split("==") for pin in project["tool"]["uv"]["constraint-dependencies"])
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    assert len(wanted) > 25
    for requirement in wanted:
        assert ">=" in requirement, requirement
        assert name_of(requirement) in pinned, requirement


@pytest.mark.parametrize("floor", ["torch>=2.11", "lightning-fabric>=2.6.6", "pillow>=12.3", "starlette>=1.0.1"])
def test_the_floors_that_safety_asks_for(project: dict[str, Any], floor: str) -> None:
    assert any(requirement.startswith(floor) for requirement in project["project"]["dependencies"])


def test_there_is_one_opencv(project: dict[str, Any]) -> None:
    pinned = [name_of(pin) for pin in project["tool"]["uv"]["constraint-dependencies"]]
    assert [name for name in pinned if name.startswith("opencv")] == ["opencv-python-headless"]


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['project']['version']}\n" in citation


def test_the_package_is_typed_and_licensed() -> None:
    assert (ROOT / "samtune" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("\nuv run pytest")  # last, so that its summary closes the log
    assert "uv run pytest" in (ROOT / "README.md").read_text(encoding="utf-8")
