from __future__ import annotations

import os

import pytest

from samtune.base.environment import DEFAULTS, set_defaults


def test_sets_what_is_missing_and_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    set_defaults()
    assert {name: os.environ[name] for name in DEFAULTS} == {**DEFAULTS, "HF_HUB_DISABLE_TELEMETRY": "0"}


@pytest.mark.parametrize("tool", ["MLFLOW", "HF_HUB", "ALBUMENTATIONS", "GRADIO", "RAY"])
def test_covers_every_dependency_that_calls_home(tool: str) -> None:
    assert any(tool in name for name in DEFAULTS)


def test_the_tracker_takes_its_variable() -> None:
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get() is True
