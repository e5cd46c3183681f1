"""The cost of several classes beside that of one mask is measured on the steps of real jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_classes import KINDS, main


def test_each_kind_of_job_makes_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ["--model", "sam_tiny", "--size", "64", "--batch", "2", "--repeats", "1", "--classes", "3"]
    main([*small, "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in found["rows"]] == list(KINDS)
    assert found["rows"][0]["ratio"] == 1 and all(row["step_ms"] > 0 for row in found["rows"])
    assert json.loads(capsys.readouterr().out) == found
