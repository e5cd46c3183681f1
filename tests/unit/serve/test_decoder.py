"""The process that decodes: it gives what decoding here gives, and whatever happens to it, the next picture works."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from serve_helpers import encoded, many_scans, picture

from samtune.serve import decoder as module
from samtune.serve.decoder import Decoder
from samtune.serve.gate import ApiError
from samtune.serve.picture import decode

MOST = 40_000_000
Changed = Callable[[str], Decoder]


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Changed]:
    """A decoder whose process runs some code before it begins, with `p` for the module it runs."""
    made: list[Decoder] = []

    def make(code: str) -> Decoder:
        text = f"import os, samtune.serve.picture as p\n{code}\np.main()"
        monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-P", "-c", text))
        made.append(Decoder())
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def pid_of(decoder: Decoder) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def works(decoder: Decoder) -> bool:
    return np.array_equal(decoder.decode(encoded(), max_pixels=MOST)[0], np.asarray(picture()))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "WEBP"])
def test_it_decodes_as_this_process_does(decoder: Decoder, format: str) -> None:
    data = encoded(picture(size=(700, 500)), format)
    pixels, warnings = decoder.decode(data, max_pixels=MOST)
    assert np.array_equal(pixels, decode(data, max_pixels=MOST)[0]) and warnings == []


def test_a_refusal_is_an_answer(decoder: Decoder) -> None:
    works(decoder)
    before = pid_of(decoder)
    with pytest.raises(ApiError) as caught:
        decoder.decode(encoded(), max_pixels=100)
    assert (caught.value.status, caught.value.code, caught.value.field) == (413, "image_too_large", "image")
    assert works(decoder) and pid_of(decoder) == before


def test_a_picture_that_computes_for_ever_is_ended(changed: Changed) -> None:
    decoder = changed("p.CPU_SECONDS = 0.3; p.MAX_SCANS = 10**9")
    decoder.start()
    start = time.monotonic()
    with pytest.raises(ApiError) as caught:
        decoder.decode(many_scans(9000, size=6300), max_pixels=MOST)
    assert (caught.value.status, caught.value.code) == (422, "costly_image")
    assert time.monotonic() - start < 10 and works(decoder)


def test_a_crash_takes_nothing_with_it(changed: Changed) -> None:
    decoder = changed("old = p.decode; p.decode = lambda data, **o: os.abort() if data == b'x' else old(data, **o)")
    with pytest.raises(ApiError) as caught:
        decoder.decode(b"x", max_pixels=MOST)
    assert (caught.value.status, caught.value.code) == (422, "corrupt_image") and works(decoder)


def test_memory_has_a_limit(changed: Changed) -> None:
    decoder = changed(
        "old = p.decode; p.decode = lambda data, **o: bytearray(9 << 30) if data == b'x' else old(data, **o)"
    )
    with pytest.raises(MemoryError):
        decoder.decode(b"x", max_pixels=MOST)
    assert works(decoder)


def test_an_interrupted_picture_frees_the_thread(changed: Changed) -> None:
    decoder = changed(
        "import time; old = p.decode; p.decode = lambda d, **o: time.sleep(60) if d == b'x' else old(d, **o)"
    )
    decoder.start()
    threading.Timer(0.3, decoder.interrupt).start()
    start = time.monotonic()
    with pytest.raises(MemoryError):
        decoder.decode(b"x", max_pixels=MOST)
    assert time.monotonic() - start < 10 and works(decoder)
    before = pid_of(decoder)
    decoder.interrupt()  # nothing is decoded
    assert works(decoder) and pid_of(decoder) == before


def test_signals_of_the_server_do_not_reach_it(decoder: Decoder) -> None:
    works(decoder)
    before = pid_of(decoder)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(before, number)
    assert works(decoder) and pid_of(decoder) == before
    os.kill(before, signal.SIGKILL)  # by the system, short of memory
    assert decoder._process is not None and decoder._process.wait(10) == -signal.SIGKILL
    assert works(decoder) and pid_of(decoder) != before


def test_it_ends_with_the_server_and_when_it_is_closed(changed: Changed) -> None:
    decoder = changed("")
    decoder.start()
    process = decoder._process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # as when the server is killed
    assert process.wait(10) == 0 and works(decoder)
    process = decoder._process
    decoder.close()
    assert process is not None and process.poll() == -signal.SIGKILL
    with pytest.raises(ApiError) as caught:
        decoder.decode(encoded(), max_pixels=MOST)
    assert (caught.value.status, caught.value.code) == (503, "ending")


def test_a_process_that_can_not_start_is_a_failure_of_the_server(changed: Changed) -> None:
    with pytest.raises(RuntimeError, match="ended at its start with 3"):
        changed("os._exit(3)").start()
