"""Sweeps by Ray: the same numbers as without, failures that stop nothing, and addresses where nobody answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtune.errors import ConfigError
from samtune.sweep import ray as sweep_ray
from samtune.sweep.ray import check_address, ray_engine, share

BASE = "task: classification\nmodel: {name: vit_mini, checkpoint: random}\nrun: {device: cpu}\ntrain: {batch: 4}\n"


@pytest.mark.parametrize(
    ("nodes", "jobs", "cpu", "gpu"),
    [
        ([{"CPU": 2.0}], 2, 1, 0),
        ([{"CPU": 16.0, "GPU": 1.0}], 4, 4, 0.25),
        ([{"CPU": 8.0, "GPU": 4.0}], 2, 4, 1),
        ([{"CPU": 8.0, "GPU": 3.0}], 4, 2, 0.5),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, 4, 0),  # 5 would fit only once on each machine
        ([{"CPU": 8.0}, {"CPU": 4.0}], 1, 8, 0),  # no run spans machines
        ([{"CPU": 2.0}], 5, 1, 0),
        ([{"CPU": 0.0}, {"CPU": 1.0}], 1, 1, 0),
    ],
)
def test_each_run_gets_its_share(nodes: list[dict[str, float]], jobs: int, cpu: int, gpu: float) -> None:
    assert share(nodes, jobs) == {"cpu": cpu, "gpu": gpu}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["somewhere", "ray://10.0.0.1:10001", ":6379", "host:port"])
def test_an_address_of_another_form(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address '.*': expected HOST:PORT of a Ray cluster's head, such as"):
        check_address(address)


def test_an_address_where_nobody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError) as caught:
        check_address(f"127.0.0.1:{port}")
    text = str(caught.value)
    assert f"no Ray cluster can be used at 127.0.0.1:{port}: [Errno 111] Connection refused" in text
    assert f"ray start --head --port {port}" in text and "leave out --address" in text


def test_an_address_that_does_not_answer(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_ray, "PROBE_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(ConfigError, match="no answer in time"):
        check_address(f"127.0.0.1:{silent_port}")
    assert time.monotonic() - start < 8


def test_the_reason_of_a_probe_that_fails(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_ray, "PROBE", ("-c", "raise RuntimeError('another version of Ray')"))
    with pytest.raises(ConfigError, match=r"RuntimeError: another version of Ray\. Start one there by"):
        check_address(f"127.0.0.1:{silent_port}")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            ConfigError, match=r"--engine ray needs Ray Tune, which is an extra: pip install 'samtune\[ray\]'"
        ),
        ray_engine(jobs=1, folder=tmp_path, address=None),
    ):
        pass


def write_classes(folder: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")


def sweep(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samtune", "sweep", "--config", "demo.yaml", "--jobs", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_ray_gives_the_same_numbers_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_classes(tmp_path / "data")
    Path("base.yaml").write_text(BASE + "data: {dir: data}\n")
    rows = {
        "linear": {"title": "Linear", "overrides": {"select": {"name": "linear"}}},
        "bias": {"title": "Bias", "overrides": {"select": {"name": "bias"}}},
        "lost": {"title": "Lost", "overrides": {"select": {"name": "linear"}, "data.dir": "nowhere"}},
    }
    content: dict[str, Any] = {"name": "demo", "config": "base.yaml", "steps": 2, "cells": rows}
    Path("demo.yaml").write_text(json.dumps(content))
    runs = {engine: sweep("--engine", engine, "--out", engine) for engine in ("local", "ray")}
    for engine, done in runs.items():
        assert done.returncode == 1, done.stderr
        assert "1 cell(s) failed" in done.stderr and "lost_0: " in done.stderr and "nowhere" in done.stderr
        assert done.stdout.startswith(f"| {engine} | top1 |")  # nothing of Tune's own before the table
        assert {path.parent.name for path in Path(engine).glob("cells/*/cell.json")} == {"linear_0", "bias_0"}
    for name in ("linear_0", "bias_0"):
        table, same = ((Path(engine) / "cells" / name / "per_image.csv").read_text() for engine in runs)
        assert len(table.splitlines()) == 7 and table == same
    assert not Path("ray/ray").exists()  # Tune's own records are not needed to go on
