"""The epoch benchmark on a tiny model: it runs, and its numbers fit together."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_epoch
import pytest


def test_it_measures_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "epoch.json"
    benchmark_epoch.main(["--model", "test_vit", "--images", "20", "--batch", "8", "--json", str(file)])
    result = json.loads(file.read_text())
    assert len(result["epochs"]) == 2
    for epoch in result["epochs"]:
        assert epoch["ratio"] == pytest.approx(epoch["epoch_s"] / result["floor_epoch_s"], rel=0.1)
        assert 0 < epoch["loading_share"] < 1
        assert epoch["step_ms"]["min"] <= epoch["step_ms"]["median"] <= epoch["step_ms"]["max"]
