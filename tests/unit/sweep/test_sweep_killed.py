"""A sweep that is killed without warning: nothing keeps running, and the same command does the rest, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from processes import is_alive, until

# The real sweep and its real processes; only what a process does is a toy, which notes that it was started.
SCRIPT = """
import sys
from samtune.base.children import Children
from samtune.sweep.run import run_sweep
from samtune.sweep.settings import load_sweep

run = Children.run

def toy(self, command, log, threads):
    return run(self, [sys.executable, "-S", "toy.py", command[command.index("--run-dir") + 1]], log, threads)

Children.run = toy
result = run_sweep(load_sweep("sweep.yaml"))
print(result.finished, len(result.failed))
"""
TOY = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with open("starts.txt", "a") as file:
    file.write(f"{os.getpid()} {folder}\\n")
folder.mkdir(parents=True, exist_ok=True)
events = [{"split": "val", "step": 1, "mDice": 0.5}, {"split": "fit", "step": 1, "seconds": 0.1, "memory_mib": 1}]
(folder / "history.jsonl").write_text(json.dumps(events[0]))
time.sleep(0.15)
(folder / "history.jsonl").write_text("\\n".join(map(json.dumps, events)))
(folder / "metrics.json").write_text('{"ci95": {"mDice": [0, 1]}, "mDice": 0.5}')
"""


def starts() -> list[tuple[int, str]]:
    file = Path("starts.txt")
    lines = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
    return [(int(pid), folder) for pid, folder in lines]


def finished() -> set[str]:
    return {str(path.parent) for path in Path("runs").glob("**/cell.json")}


def test_a_sweep_of_24_runs_survives_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(TOY)
    Path("base.yaml").write_text("data: {dir: pictures}\n")
    names = ("linear", "bias", "full", "partial")
    rows = {name: {"title": name, "overrides": {"select": {"name": name}}} for name in names}
    tasks = {name: {"title": name, "overrides": {"data.dir": name}} for name in ("a", "b")}
    content = {"name": "demo", "config": "base.yaml", "steps": 1, "tasks": tasks, "cells": rows, "seeds": [0, 1, 2]}
    Path("sweep.yaml").write_text(json.dumps(content | {"jobs": 2}))

    sweep = subprocess.Popen([sys.executable, "-c", SCRIPT])
    until(lambda: len(finished()) >= 5, 60)
    sweep.kill()
    sweep.wait()
    until(lambda: not any(is_alive(pid) for pid, _ in starts()), 5)
    before = finished()
    assert 5 <= len(before) < 24

    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split() == ["24", "0"], done.stderr
    counts = Counter(folder for _, folder in starts())
    assert len(counts) == len(finished()) == 24
    assert {counts[folder] for folder in before} == {1}
    assert sum(counts.values()) <= 24 + 2  # at most what was running was begun again
