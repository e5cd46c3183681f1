"""A tracker that is dead, slow, broken or read-only costs a run at most 5 seconds, and no number."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import TheRun, history, log_to, wait_for_id

from samtune.base.tracking.sync import sync
from samtune.base.tracking.tracker import WAIT, reason_of


@contextmanager
def socket_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Hands each connection to `answer` in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def one_byte_a_second(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n":
            connection.sendall(bytes([byte]))
            time.sleep(1)


def silence(connection: socket.socket) -> None:
    with connection:
        time.sleep(20)


@contextmanager
def http_server(calls: int) -> Iterator[str]:
    """Answers as MLflow does so many times, with an error of its own from then on."""
    asked = []
    answers: dict[str, dict[str, Any]] = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "tests"}},
        "runs/create": {"run": {"info": {"run_id": "5", "status": "RUNNING", "artifact_uri": "x:"}, "data": {}}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = next((answer for path, answer in answers.items() if path in self.path), {})
            body = json.dumps(known if len(asked) <= calls else {"message": "broken"}).encode()
            self.send_response(200 if len(asked) <= calls else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
    assert len(asked) > calls


@contextmanager
def nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def read_only(database: Path) -> Iterator[str]:
    yield f"sqlite:///file:{database}?mode=ro&uri=true"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dead port": (lambda _: nobody(), "refused"),
    "never answers": (lambda _: socket_server(silence), "it took longer than 5 s"),
    "one byte a second": (lambda _: socket_server(one_byte_a_second), "it took longer than 5 s"),
    "error 500": (lambda _: http_server(0), "500 error responses"),
    "dies after the third call": (lambda _: http_server(3), "500 error responses"),
    "read-only database": (read_only, "readonly database"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_tracker_that_fails_costs_5_seconds_and_no_number(
    kind: str,
    at_home: Path,
    the_run: TheRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, reason = FAULTS[kind]
    folder, name = tmp_path / "a run", kind.replace(" ", "_")
    (tmp_path / "a run").mkdir()
    (folder / "config.yaml").write_text(f"run: {{name: {name}}}\ntrack: {{experiment: tests}}\nselect: {{name: gps}}\n")
    with server(at_home / "runs" / "mlflow.db") as uri, caplog.at_level(logging.WARNING, logger="samtune.base"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        start = time.monotonic()
        with log_to(folder, name=name) as log:
            for epoch in range(6):
                log.event({"step": epoch, "epoch": epoch, "split": "val", "mDice": epoch / 10})
            log.artifacts([folder / "config.yaml"])
            trained = time.monotonic() - start
        waited = time.monotonic() - start
    assert trained < 1, "the training waited"
    assert waited < WAIT + 0.5
    (message,) = caplog.messages
    assert reason in message
    assert message.endswith(f"; history.jsonl has everything, to tell it later: samtune sync '{folder}'")
    assert [event["mDice"] for event in history(folder)] == [epoch / 10 for epoch in range(6)]

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    told = sync(folder)
    assert (told.numbers, told.files, told.status) == (12, 1, "FINISHED")
    run = the_run(name)
    assert (run.info.status, run.data.metrics["val/mDice"]) == ("FINISHED", 0.5)
    again = sync(folder)
    assert (again.numbers, again.files, again.run_id) == (0, 0, told.run_id)


def test_a_database_that_dies_in_the_middle_is_told_later_what_it_lacks(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    shutil.copy(at_home / "runs" / "mlflow.db", database := tmp_path / "own.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("track: {experiment: tests}")
    with caplog.at_level(logging.WARNING, logger="samtune.base"), log_to(tmp_path / "r", name="dying") as log:
        log.event({"step": 0, "split": "val", "mDice": 0.1})
        run_id = wait_for_id(log)
        client = mlflow.MlflowClient(f"sqlite:///{database}")
        while "val/mDice" not in client.get_run(run_id).data.metrics:
            time.sleep(0.02)
        with closing(sqlite3.connect(database)) as broken, broken:
            broken.execute("CREATE TRIGGER die BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'it died'); END")
        log.event({"step": 1, "split": "val", "mDice": 0.2})
    (message,) = caplog.messages
    assert "it died" in message and "samtune sync" in message
    assert client.get_run(run_id).info.status == "RUNNING"
    with closing(sqlite3.connect(database)) as broken, broken:
        broken.execute("DROP TRIGGER die")
    told = sync(tmp_path / "r")
    assert (told.numbers, told.run_id, told.status) == (1, run_id, "FINISHED")
    assert [m.value for m in client.get_metric_history(run_id, "val/mDice")] == [0.1, 0.2]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert sync(tmp_path / "r").numbers == 0


@pytest.mark.parametrize("kind", ["nonsense", "a file where the folder should be"])
def test_what_can_not_be_a_store_is_one_warning(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if kind == "nonsense":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://x")
    else:
        (tmp_path / "runs").write_text("no folder")
    with caplog.at_level(logging.WARNING, logger="samtune.base"), log_to(tmp_path / "r") as log:
        log.event({"step": 1, "split": "val", "mDice": 0.5})
    assert len(caplog.messages) == 1
    assert len(history(tmp_path / "r")) == 1


def test_a_password_in_an_address_is_not_shown() -> None:
    address = "http://" + "me:secret" + "@host/x"  # in parts: a search for secrets reads this file too
    assert reason_of(OSError(f"no {address}\nmore")) == "OSError: no http://host/x"
