"""Real connections to a real server: slow ones, silent ones, too many, and bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from serve_helpers import app_of, encoded, running, until

from samtune.serve import connection
from samtune.serve import server as server_module
from samtune.serve.connection import Quiet, most_connections
from samtune.serve.gate import SECURITY_HEADERS
from samtune.serve.server import Server
from samtune.serve.upload import Limits
from samtune.tasks.masks.service import MaskService

Address = tuple[str, int]
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=a\r\n"
SLOW = HEAD + b"Content-Length: 9999\r\n\r\n--a\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def server(masks: MaskService, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Address]]:
    """A server with few places and little time."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connection, "READ_SECONDS", 0.8)
    with running(app_of(masks, limits=Limits(waiting=3)), connections=12) as made:
        yield made


@pytest.fixture(scope="module")
def patient(masks: MaskService) -> Iterator[Address]:
    """A server with its usual limits, but few places."""
    with running(app_of(masks, limits=Limits(waiting=3)), connections=12) as (_, address):
        yield address


def connect(address: Address, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(address, timeout=10)
    client.sendall(data)
    return client


def everything(client: socket.socket) -> bytes:
    """Reads until the server closes."""
    found = b""
    with client, suppress(ConnectionResetError):
        while data := client.recv(65536):
            found += data
    return found


def checked(answer: bytes) -> tuple[int, str]:
    """Returns status and code of an error after checking that it has envelope and headers."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "field", "request_id"} and error["request_id"] == headers["x-request-id"]
    assert set(map(str.lower, SECURITY_HEADERS)) <= set(headers) and int(headers["content-length"]) == len(body)
    return int(status.split()[1]), error["code"]


def ask(address: Address) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{address[1]}/v1/predict", files={"image": ("a", encoded())})


@pytest.mark.parametrize("data", [b"", b"G", b"GET /livez HTTP/1.1\r\nHost: loc"], ids=["nothing", "G", "half a head"])
def test_a_head_that_does_not_come(server: tuple[Server, Address], data: bytes) -> None:
    start = time.monotonic()
    assert checked(everything(connect(server[1], data))) == (408, "slow_request")
    assert 0.3 < time.monotonic() - start < 5


def test_a_head_byte_by_byte_gets_no_more_time(server: tuple[Server, Address]) -> None:
    client = connect(server[1])
    start = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - start < 9:
            client.sendall(b"a")
            time.sleep(0.1)
    client.close()


def test_a_second_head_that_does_not_come(server: tuple[Server, Address]) -> None:
    client = connect(server[1], GET + GET[:9])
    assert everything(client).count(b'{"status":"alive"}') == 1


def test_an_answer_that_is_not_read(server: tuple[Server, Address]) -> None:
    client = connect(server[1])
    client.setblocking(False)
    with pytest.raises((BlockingIOError, ConnectionError)):
        while True:  # until nothing more can be sent
            client.sendall(GET.replace(b"/livez", b"/") * 100)
    until(lambda: not server[0].server_state.connections, seconds=10)
    client.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\nhello\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n bad: fold\r\nx\x00: y\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"X: " + b"x" * 70_000,
    ],
    ids=lambda data: repr(data[-24:]),
)
def test_what_is_no_http(patient: Address, data: bytes) -> None:
    assert checked(everything(connect(patient, data))) == (400, "bad_http")


def test_a_broken_chunk_ends_the_connection(patient: Address, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(patient, HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a number\r\n")
    status, _ = checked(everything(client))
    assert status == 400 and "Traceback" not in caplog.text


def test_heads_of_any_kind_never_fail(patient: Address, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    pieces = [b"charset=undefined", b"charset=punycode", b"boundary=", b"multipart/form-data", b"\xff\xfe", b'"', b";"]
    pieces += [
        b"Bearer ",
        b"chunked",
        b"100-continue",
        b"websocket",
        b"Upgrade",
        b"gzip",
        b"bytes=0-",
        b"*",
        b"%",
        b",",
    ]
    names = (
        b"Content-Type Expect Upgrade Connection Accept Origin Range Authorization Content-Disposition X-Forwarded-For"
    )
    seen = set()
    for _ in range(200):
        lines = [b"POST /v1/predict?%ff HTTP/1.1", b"Host: localhost", b"Connection: close", b"Content-Length: 4"]
        lines += [rng.choice(names.split()) + b": " + b"".join(rng.choices(pieces, k=4)) for _ in range(3)]
        if rng.random() < 0.5:
            lines.append(b"Content-Type: multipart/form-data; boundary=X; " + rng.choice(pieces))
        if rng.random() < 0.2:
            lines[rng.randrange(len(lines))] = rng.randbytes(9)
        answer = everything(connect(patient, b"\r\n".join([*lines, b"", b"--X\r"])))
        if answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2]
        seen.add(checked(answer)[0])
    assert seen <= {400, 404, 405, 415, 422} and {400, 415} <= seen and "Traceback" not in caplog.text


def test_slow_uploads_give_way(patient: Address) -> None:
    slow = [connect(patient, SLOW) for _ in range(4)]
    until(lambda: ask(patient).status_code == 503)  # all of them have arrived
    until(lambda: ask(patient).status_code == 200, seconds=5)
    answers = []
    for client in slow:
        client.settimeout(0.2)
        with client, suppress(TimeoutError):
            answers.append(checked(client.recv(65536)))
    assert 1 <= len(answers) <= 4 and set(answers) == {(408, "slow_upload")}


def test_idle_connections_give_way(patient: Address) -> None:
    idle = [connect(patient) for _ in range(12)]
    until(lambda: everything(connect(patient)).startswith(b"HTTP/1.1 503"))
    time.sleep(1)  # what a new connection has in any case
    with httpx.Client(base_url=f"http://127.0.0.1:{patient[1]}") as client:
        assert client.get("/livez").status_code == 200
    for one in idle:
        one.close()


def test_the_end_does_not_wait_for_slow_uploads(masks: MaskService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 1)
    with running(app_of(masks)) as (server, address):
        upload, head = connect(address, SLOW), connect(address, GET[:9])
        until(lambda: len(server.server_state.tasks) == 1)
        start, server.should_exit = time.monotonic(), True
        assert checked(everything(upload)) == (503, "ending") and everything(head) == b""
    assert time.monotonic() - start < 10


def test_connections_leave_files_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for files in (32, 64, 256, 1 << 20, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        found[files] = most_connections()
    assert found == {32: 8, 64: 8, 256: 192, 1 << 20: 512, resource.RLIM_INFINITY: 512}


def test_a_lack_of_files_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    quiet, loop = Quiet(), asyncio.new_event_loop()
    for _ in range(50):
        quiet(loop, {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "full")})
    quiet(loop, {"message": "another fault", "exception": OSError(errno.EPIPE, "pipe")})
    loop.close()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "ulimit -n" in warned[0].getMessage() and "another fault" in caplog.text
