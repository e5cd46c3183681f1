"""The process: what it refuses, and one real server from start to SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import uvicorn
from serve_helpers import encoded, picture

from samtune.errors import CheckpointError, ConfigError
from samtune.files.merged import save_merged
from samtune.serve import run_server
from samtune.tasks.masks import predict
from samtune.tasks.masks.predict import Predictor

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def merged(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "merged.safetensors"
    save_merged(path, predictor.model, predictor.info)
    return path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_other_machines_need_a_key(merged: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("SAMTUNE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"lets other machines in\. Set SAMTUNE_API_KEY"):
        run_server(merged, host=host, port=0)


@pytest.mark.parametrize(("key", "insecure"), [("k" * 20, False), (None, True)])
def test_a_key_or_insecure_opens_the_door(
    merged: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, insecure: bool
) -> None:
    started: list[uvicorn.Server] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: started.append(self))
    if key:
        monkeypatch.setenv("SAMTUNE_API_KEY", key)
    run_server(merged, host="0.0.0.0", port=0, device="cpu", insecure=insecure)
    assert len(started) == 1


def test_wrong_files_and_addresses_fail_before_it_listens(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        run_server(tmp_path / "merged.safetensors", port=0)
    with pytest.raises(ConfigError, match="'tpu' is not available"):
        run_server(merged, port=0, device="tpu")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1 port {port}: .*--port"):
            run_server(merged, port=port)


def test_a_model_that_can_not_be_loaded_ends_the_server(merged: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "merged.safetensors"
    content = merged.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    damaged.write_bytes(content[:size] + b"\xff" * (len(content) - size))  # every weight is NaN
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            run_server(damaged, port=0, device="cpu")
        except CheckpointError as err:
            failed.append(err)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and "NaN" in str(failed[0])


def test_a_real_server_from_start_to_sigterm(merged: Path, tmp_path: Path) -> None:
    code = "import sys; from samtune.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "serve", "--checkpoint", str(merged), "--port", "0"]
    env = {k: v for k, v in os.environ.items() if k != "SAMTUNE_API_KEY"} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        assert process.stderr is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert address is not None
        with httpx.Client(base_url=address[0], transport=httpx.HTTPTransport(retries=3)) as client:
            while client.get("/readyz").status_code == 503:
                pass
            response = client.post("/v1/predict", files={"image": ("secret.png", encoded())})
            assert response.status_code == 200 and "server" not in response.headers
            large = client.post("/v1/predict", files={"image": ("a", b"0" * 20_000_001)})
            assert large.status_code == 413
            mask = tmp_path / "served.png"
            mask.write_bytes(response.content)
        picture().save(tmp_path / "a.png")
        predictor = Predictor.from_file(merged, device="cpu")
        (written,) = predict.predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
        assert written.read_bytes() == mask.read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        rest = process.stderr.read()
        assert "POST /v1/predict 200" in rest and "secret" not in rest and "Traceback" not in rest
    finally:
        guard.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
