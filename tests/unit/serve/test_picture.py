"""Bytes become pixels as `samtune predict` reads them; what would cost too much is refused by its structure."""

from __future__ import annotations

import struct
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve_helpers import deep_png, encoded, many_scans, picture

from samtune.data.pictures import read_image
from samtune.serve.picture import MAX_SCANS, REQUEST, Refused, answer_all, decode

MOST = 40_000_000


def pages(count: int) -> bytes:
    """A TIFF of one small page after the other, which a reader has to follow to count them."""
    data = bytearray(encoded(format="TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * entries, len(data))
    start = len(data)
    for index in range(count):
        following = start + 18 * (index + 1) if index < count - 1 else 0
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 16, following)
    return bytes(data)


def test_many_pages_are_refused_without_counting_them() -> None:
    data = pages(160_000)
    start = time.process_time()
    with pytest.raises(Refused) as caught:
        decode(data, max_pixels=MOST)
    assert caught.value.args[:2] == (422, "many_frames") and time.process_time() - start < 1


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    start = time.process_time()
    with pytest.raises(Refused) as caught:
        decode(many_scans(9000), max_pixels=MOST)
    assert caught.value.args[:2] == (422, "many_scans") and str(MAX_SCANS) in caught.value.args[2]
    assert time.process_time() - start < 1


def test_ordinary_scans_and_what_is_behind_the_end_are_no_harm() -> None:
    film = b"\xff\xda\0\x08" * 1000
    pixels, _ = decode(encoded(format="JPEG", progressive=True) + film, max_pixels=MOST)
    assert np.array_equal(pixels, decode(encoded(format="JPEG", progressive=True), max_pixels=MOST)[0])
    comment = encoded(format="JPEG", comment=film)
    assert decode(comment, max_pixels=MOST)[0].shape == (50, 80, 3)


def grey(top: int, format: str) -> bytes:
    return encoded(Image.fromarray(np.linspace(7, top, 256).astype(np.uint16).reshape(16, 16)), format)


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (grey(4000, "PNG"), "16-bit grey with values from 7 to 4000: 0 to 4095 was scaled to 0 to 255"),
        (grey(51000, "PNG"), "16-bit grey with values from 7 to 51000: 0 to 65535 was scaled to 0 to 255"),
        (grey(51000, "TIFF"), "16-bit grey with values from 7 to 51000: 0 to 65535 was scaled to 0 to 255"),
        (deep_png(top=4095), "16-bit colour was cut to its upper 8 bits, with values from 0 to 15"),
    ],
    ids=["12 bit grey", "16 bit grey", "16 bit tiff", "16 bit colour"],
)
def test_16_bits_are_read_as_by_predict_and_said(tmp_path: Path, data: bytes, warning: str) -> None:
    file = tmp_path / "deep"
    file.write_bytes(data)
    pixels, warnings = decode(data, max_pixels=MOST)
    assert np.array_equal(pixels, read_image(file)) and warnings == [warning]


def test_the_process_answers_one_request_after_the_other() -> None:
    requests, answers = BytesIO(), BytesIO()
    for data in (encoded(), b"nothing", encoded(picture("L"))):
        requests.write(REQUEST.pack(len(data), MOST) + data)
    requests.seek(0)
    answer_all(requests, answers)
    told = answers.getvalue()
    line = b'{"shape": [50, 80, 3], "warnings": %s}\n'
    first, pixels = line % b"[]", np.asarray(picture()).tobytes()
    assert told.startswith(first + pixels + b'{"refused": [415, "unsupported_image", ')
    grey = np.asarray(picture("L").convert("RGB")).tobytes()
    assert told.endswith(line % b'["a grey image: the model is made for colours"]' + grey)
