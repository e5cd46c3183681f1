"""What holds around every request: envelope, headers, host, key, queue, time, memory, log."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve_helpers import URL, Post, app_of, encoded, error_of, picture

from samtune.errors import NonFiniteError
from samtune.serve.app import create_app
from samtune.serve.gate import SECURITY_HEADERS
from samtune.serve.upload import Limits
from samtune.tasks.classes.predict import ClassService
from samtune.tasks.masks.service import MaskService
from samtune.tasks.service import Answer, Service

KEY = "correct horse"


class Slow(MaskService):
    """Waits to be released before it answers."""

    def __init__(self, service: MaskService) -> None:
        super().__init__(service.predictor)
        self.release, self.running, self.most = threading.Event(), 0, 0

    def answer(self, *args: Any) -> Answer:
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.release.wait(10)
        self.running -= 1
        return super().answer(*args)


def failing(service: MaskService, error: Exception) -> Service:
    class Failing(MaskService):
        def answer(self, *_: Any) -> Answer:
            raise error

    return Failing(service.predictor)


def send(app: FastAPI, count: int = 1) -> list[httpx.Response]:
    """Posts one picture `count` times at once."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            posts = (client.post("/v1/predict", files={"image": ("a", encoded())}) for _ in range(count))
            return list(await asyncio.gather(*posts))

    return asyncio.run(run())


def test_probes_and_model(any_client: TestClient, service: Service) -> None:
    assert any_client.get("/livez").json() == {"status": "alive"}
    assert any_client.get("/readyz").json() == {"status": "ready"}
    assert any_client.get("/v1/model").json() == service.about()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/predict/", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("POST", "/livez", 405, "method_not_allowed"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("BREW", "/v1/predict", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/predict", 405, "method_not_allowed"),
    ],
)
def test_routing_errors_have_the_envelope(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/nothing", "/v1/model", "/openapi.json"])
def test_security_headers_are_everywhere(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"Origin": "http://evil.test"})
    assert set(map(str.lower, SECURITY_HEADERS)) <= set(response.headers)
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


@pytest.mark.parametrize(
    ("task", "fields", "answers"),
    [
        ("masks", {"image", "box", "points", "labels", "format"}, {"image/png", "application/json"}),
        ("classes", {"image"}, {"application/json"}),
    ],
)
def test_the_api_description_has_the_form(
    request: pytest.FixtureRequest, task: str, fields: set[str], answers: set[str]
) -> None:
    client = TestClient(app_of(request.getfixturevalue(task)), base_url=URL)
    described = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == fields and form["required"] == ["image"]
    assert set(described["responses"]["200"]["content"]) == answers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("evil.test", 400),
        ("127.0.0.1.evil.test", 400),
        ("", 400),
        ("[::1", 400),
        ("[::1]evil.test", 400),
        ("localhost:evil", 400),
    ],
)
def test_only_own_names_are_answered(client: TestClient, host: str, status: int) -> None:
    response = client.get("/livez", headers={"Host": host})
    assert response.status_code == status
    if status == 400:
        assert error_of(response)["code"] == "unknown_host"


def test_any_name_where_it_is_meant(masks: MaskService) -> None:
    client = TestClient(app_of(masks, hosts=None), base_url="http://any.test")
    assert client.get("/v1/model").status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Bearer wrong", 401),
        ("Bearer \xe9", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        (None, 401),
    ],
)
def test_the_key(masks: MaskService, header: str | None, status: int) -> None:
    client = TestClient(app_of(masks, api_key=KEY), base_url=URL)
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    response = client.post("/v1/predict", files={"image": ("a", encoded())}, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert error_of(response)["code"] == "unauthorized"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/v1/model").status_code == client.get("/openapi.json").status_code == 401
    assert [client.get(path).status_code for path in ("/livez", "/", "/docs")] == [200] * 3


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"Host": "evil.test"}, 400), ({"Content-Length": "99999999"}, 413)]
)
def test_a_refused_body_is_not_read(masks: MaskService, headers: dict[str, str], status: int) -> None:
    app = app_of(masks, api_key=KEY)
    given = {"Host": "localhost", "Content-Type": "multipart/form-data; boundary=a"} | headers
    if status == 413:
        given["Authorization"] = f"Bearer {KEY}"
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def keep(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, keep))
    assert sent[0]["status"] == status


def test_loading_is_said_until_it_is_done(masks: MaskService) -> None:
    release = threading.Event()

    def load() -> MaskService:
        assert release.wait(10)
        return masks

    with TestClient(create_app(MaskService, load), base_url=URL) as client:
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "samtune-load"] == [False]
        for path in ("/livez", "/", "/openapi.json"):
            assert client.get(path).status_code == 200
        for response in (client.get("/readyz"), client.get("/v1/model"), client.post("/v1/predict")):
            assert (response.status_code, error_of(response)["code"]) == (503, "loading")
            assert int(response.headers["Retry-After"]) > 0
        release.set()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/model").status_code == 200


def test_a_failed_load_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> MaskService:
        raise ValueError("no such weights")

    with TestClient(create_app(MaskService, load), base_url=URL) as client:
        wait_for(lambda: "load_failed" in client.get("/readyz").text)
        assert "weights" not in client.get("/readyz").text
    assert "no such weights" in caplog.text


def test_one_at_a_time_and_the_rest_is_told_to_come_back(masks: MaskService) -> None:
    slow = Slow(masks)
    threading.Timer(0.3, slow.release.set).start()
    responses = send(app_of(slow, limits=Limits(waiting=3)), count=64)
    good = [r for r in responses if r.status_code == 200]
    busy = [r for r in responses if r.status_code == 503]
    assert (len(good), len(busy), slow.most) == (4, 60, 1)
    assert {error_of(r)["code"] for r in busy} == {"busy"} and "Retry-After" in busy[0].headers
    assert len({r.content for r in good}) == 1


def test_many_at_once_get_the_same_masks_as_alone(client: TestClient) -> None:
    files = [encoded(picture(seed=seed)) for seed in range(4)]

    def ask(data: bytes) -> bytes:
        response = client.post("/v1/predict", files={"image": ("a", data)})
        assert response.status_code == 200
        return response.content

    alone = [ask(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, files * 4)) == alone * 4


def test_places_are_given_back(post: Post, client: TestClient) -> None:
    for _ in range(40):
        assert post(b"x").status_code == 415
    assert post(encoded()).status_code == 200


def test_a_timeout_does_not_start_a_second_computation(masks: MaskService) -> None:
    slow = Slow(masks)
    app = app_of(slow, limits=Limits(seconds=3))  # the first picture waits for the decoder's start
    try:
        responses = send(app, count=3)
        assert [error_of(r)["code"] for r in responses] == ["timeout"] * 3
        assert responses[0].status_code == 504 and slow.running == slow.most == 1
    finally:
        slow.release.set()


def test_a_slow_upload_is_ended(masks: MaskService) -> None:
    async def body() -> Any:
        yield b"--a\r\n"
        await asyncio.sleep(5)

    async def run() -> httpx.Response:
        app = app_of(masks, limits=Limits(seconds=0.1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL) as client:
            headers = {"Content-Type": "multipart/form-data; boundary=a"}
            return await client.post("/v1/predict", content=body(), headers=headers)

    start = time.monotonic()
    response = asyncio.run(run())
    assert (response.status_code, error_of(response)["code"]) == (408, "slow_upload")
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError(), 503, "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 503, "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "out_of_memory"),
        (RuntimeError("secret detail"), 500, "internal_error"),
        (NonFiniteError("secret detail"), 500, "internal_error"),
    ],
)
def test_failures_of_the_server(masks: MaskService, error: Exception, status: int, code: str) -> None:
    (response,) = send(app_of(failing(masks, error)))
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert ("Retry-After" in response.headers) == (status == 503)
    assert "secret" not in response.text and "X-Frame-Options" in response.headers


def test_a_client_that_leaves_is_no_failure(masks: MaskService, caplog: pytest.LogCaptureFixture) -> None:
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=a")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers}
    messages: Iterator[Any] = iter(
        [{"type": "http.request", "body": b"--a\r\n", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    async def send_nothing(_: Any) -> None:
        raise AssertionError("nobody is there")

    with caplog.at_level(logging.INFO):
        asyncio.run(app_of(masks)(scope, receive, send_nothing))
    assert " 499 " in caplog.text and "Traceback" not in caplog.text


def test_the_log_has_no_text_of_the_client(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="samtune"):
        client.post("/v1/predict?who=anna", files={"image": ("anna.png", encoded())})
        client.get("/anna")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("samtune.serve")]
    assert re.fullmatch(r"POST /v1/predict 200 \d+ ms [0-9a-f]{32}", lines[0])
    assert lines[1].startswith("GET ? 404 ")
    assert "anna" not in " ".join(lines)


def test_the_page_runs_only_its_own_code(any_client: TestClient) -> None:
    response = any_client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"https?://|\sstyle=|\son\w+=|<link[^>]*stylesheet|{%|{{", response.text)


def test_the_docs_have_a_command_for_every_field_and_no_code(any_client: TestClient, service: Service) -> None:
    response = any_client.get("/docs", headers={"Host": "localhost:8123"})
    assert response.headers["content-type"].startswith("text/html")
    (style,) = re.findall("<style>(.*?)</style>", response.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = response.headers["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy and "script" not in policy and "<script" not in response.text
    shown = html.unescape(response.text)
    assert "curl -F image=@picture.png http://localhost:8123/v1/predict" in shown
    for field in service.fields:
        assert f"-F {field.name}='{field.schema['example']}'" in shown and field.schema["description"] in shown
    assert service.told and service.told in shown
    assert set(re.findall(r"https?://[^/\s]+", shown)) == {"http://localhost:8123"}
    assert 'href="/docs"' in any_client.get("/").text


def test_the_docs_show_no_host_that_is_none(masks: MaskService) -> None:
    client = TestClient(app_of(masks, hosts=None), base_url=URL)
    shown = client.get("/docs", headers={"Host": '"><b>x'}).text
    assert "<b>" not in shown and "http://127.0.0.1:8000/v1/predict" in shown


def test_the_commands_of_the_docs_work(post: Post, masks: MaskService) -> None:
    given = {field.name: field.schema["example"] for field in masks.fields}
    response = post(encoded(picture(size=(220, 200))), **given)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"


def test_each_task_brings_its_part_of_the_page(masks: MaskService, classes: ClassService) -> None:
    pages = [TestClient(app_of(service), base_url=URL).get("/").text for service in (masks, classes)]
    assert [('id="opacity"' in text, 'id="ranking"' in text) for text in pages] == [(True, False), (False, True)]
    ids = [re.findall(r'\sid="(\w+)"', text) for text in pages]
    assert all(len(set(names)) == len(names) for names in ids)
    for text, names in zip(pages, ids, strict=True):
        assert set(re.findall(r'\$\("(\w+)"\)', text)) <= set(names)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
