"""The benchmark of selecting on a small model: it runs, and its table has the shares that its numbers give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_selecting
import pytest


class SameProcess:
    """Plays the processes, which would import everything anew."""

    def Pool(self, count: int) -> SameProcess:
        return self

    def __enter__(self) -> SameProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function(*args)


def test_it_measures_two_criteria(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_selecting.multiprocessing, "get_context", lambda _: SameProcess())
    file = tmp_path / "costs.json"
    given = ["--model", "vit_tiny", "--size", "32", "--images", "4", "--batch", "2", "--threads", "1", "--repeats", "1"]
    benchmark_selecting.main([*given, "--criteria", "gradient,fps", "--json", str(file)])
    first, second = json.loads(file.read_text())["rows"]
    assert (first["criterion"], second["criterion"]) == ("gradient", "fps")
    assert min(first["scoring_s"], second["scoring_s"], first["memory_mib"]) > 0
    share = (second["scoring_s"] + second["choosing_s"]) / (first["scoring_s"] + first["choosing_s"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f"| {share:.2f} |" in lines[3] and lines[2].split(" | ")[3] == "1.00"
    assert lines[3].endswith(f"| {second['memory_mib']:,.0f} | {second['memory_mib'] / first['memory_mib']:.2f} |")


def test_a_criterion_without_a_pass_scores_nothing() -> None:
    args = benchmark_selecting.parse(
        ["--model", "vit_tiny", "--size", "32", "--images", "2", "--batch", "2", "--repeats", "1"]
    )
    row = benchmark_selecting.measure(args, "magnitude")
    assert row["scoring_s"] < row["choosing_s"]
