"""The process: what it refuses, and one real server from start to SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from serve_helpers import encoded, picture

from samtune.errors import CheckpointError, ConfigError
from samtune.files.merged import save_merged
from samtune.serve.server import Server, _listen, run_server
from samtune.tasks.classes.predict import ClassPredictor
from samtune.tasks.masks.predict import Predictor, predict_files
from samtune.tasks.predict import Prediction

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def merged(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "merged.safetensors"
    save_merged(path, predictor.model, predictor.info)
    return path


@pytest.fixture(scope="module")
def merged_classifier(classifier: ClassPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "merged.safetensors"
    save_merged(path, classifier.model, classifier.info)
    return path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., httpx.Client]]:
    """Starts real servers in threads of this process, and ends them; returns a client of each, once it is ready."""
    servers: list[uvicorn.Server] = []
    opened: list[tuple[threading.Thread, httpx.Client]] = []

    class Kept(Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr("samtune.serve.server.Server", Kept)

    def start(checkpoint: Path, **options: Any) -> httpx.Client:
        thread = threading.Thread(
            target=run_server, args=(checkpoint,), kwargs={"port": 0, "device": "cpu"} | options, daemon=True
        )
        thread.start()
        end = time.monotonic() + 30
        while len(servers) == len(opened) or not servers[-1].started:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.02)
        port = servers[-1].servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
        opened.append((thread, client))
        while client.get("/readyz").status_code == 503:
            assert time.monotonic() < end
        return client

    yield start
    for server, (thread, client) in zip(servers, opened, strict=True):
        client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_other_machines_need_a_key(merged: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("SAMTUNE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"lets other machines in\. Set SAMTUNE_API_KEY"):
        run_server(merged, host=host, port=0)


@pytest.mark.parametrize("key", ["k" * 20, None])
def test_a_key_or_insecure_opens_the_door(
    serve: Callable[..., httpx.Client], merged: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("SAMTUNE_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("SAMTUNE_API_KEY", key)
    client = serve(merged, host="0.0.0.0", insecure=key is None)
    headers = {"Host": "any.test"}  # whatever others call this machine
    assert client.get("/v1/model", headers=headers).status_code == (401 if key else 200)
    if key:
        assert client.get("/v1/model", headers=headers | {"Authorization": f"Bearer {key}"}).status_code == 200


def test_on_this_machine_only_its_own_names_are_answered(serve: Callable[..., httpx.Client], merged: Path) -> None:
    client = serve(merged)
    assert client.get("/v1/model").status_code == 200
    rebound = client.get("/v1/model", headers={"Host": "evil.test"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (400, "unknown_host")


def test_a_classifier_is_served_too(
    serve: Callable[..., httpx.Client], merged_classifier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="samtune"):
        client = serve(merged_classifier)
    assert "serving vit_mini (classification) on http://127.0.0.1:" in caplog.text
    assert 'id="ranking"' in client.get("/").text
    wanted = ClassPredictor.from_file(merged_classifier, device="cpu").predict(np.asarray(picture()))
    found = client.post("/v1/predict", files={"image": ("a.png", encoded())}).json()
    assert (found["class"], found["probability"]) == wanted.ranking[0]


@pytest.mark.parametrize("key", [" leading", "trailing ", "schlüssel", "a\tb"])
def test_a_key_that_no_client_can_send(merged: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SAMTUNE_API_KEY", key)
    with pytest.raises(ConfigError, match="SAMTUNE_API_KEY begins or ends with a space") as caught:
        run_server(merged, port=0)
    assert key not in str(caught.value)


def test_small_answers_are_sent_at_once() -> None:
    async def accepted_without_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with _listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(accept, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await found

    assert asyncio.run(accepted_without_delay())


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
    damaged.write_bytes(content[:size] + b"\xff" * (len(content) - size))
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            run_server(damaged, port=0, device="cpu")
        except CheckpointError as err:
            failed.append(err)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and f"{damaged} is damaged" in str(failed[0])


STUCK = """
import signal, sys, time
from types import SimpleNamespace
from samtune.config.pixels import RGB
from samtune.serve import server
from samtune.serve.app import create_app
from samtune.tasks.masks.service import MaskService

MaskService.answer = lambda *_: (print("computing", flush=True), time.sleep(600))
server.DRAIN_SECONDS, server.END_SECONDS = 1, 3
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as the command does
with server._listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    service = MaskService(SimpleNamespace(info=SimpleNamespace(pixels=RGB)))
    server._server(create_app(MaskService, service), 20).run(sockets=[listener])
"""


def test_sigterm_ends_a_computation_that_does_not_end() -> None:
    command, env = [sys.executable, "-c", STUCK], {**os.environ, "PYTHONPATH": str(ROOT)}
    with guarded(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1/predict"
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, url, files={"image": ("a", encoded())}, timeout=60)
            assert process.stdout.readline() == "computing\n"
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            assert (asked.result().status_code, asked.result().json()["error"]["code"]) == (503, "ending")
        assert process.wait(20) == -signal.SIGALRM and time.monotonic() - start < 15


@contextmanager
def guarded(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends a process in any case, at the latest after four minutes."""
    guard = threading.Timer(240, process.kill)
    guard.start()
    try:
        with process:
            yield process
    finally:
        guard.cancel()
        process.kill()


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def crowd(address: str) -> None:
    """Opens more connections than there may be open files; after a second, an honest request is answered."""
    host, port = address.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(100)]
    time.sleep(1.5)
    with httpx.Client(base_url=address, transport=httpx.HTTPTransport(retries=3)) as client:
        assert client.get("/livez").status_code == 200
        assert client.post("/v1/predict", files={"image": ("a.png", encoded())}).status_code == 200
    for one in idle:
        one.close()


def test_a_real_server_from_start_to_sigterm(merged: Path, tmp_path: Path) -> None:
    code = "import sys; from samtune.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "serve", "--checkpoint", str(merged), "--port", "0"]
    env = {k: v for k, v in os.environ.items() if k != "SAMTUNE_API_KEY"} | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=few_files)
    with guarded(started) as process:
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
        crowd(address[0])
        picture().save(tmp_path / "a.png")
        predict_files(Prediction(merged, [tmp_path / "a.png"], tmp_path / "out", device="cpu"))
        assert (tmp_path / "out" / "a.png").read_bytes() == mask.read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        rest = process.stderr.read()
        assert "POST /v1/predict 200" in rest and "secret" not in rest and "Traceback" not in rest
        assert len(rest) < 20_000
