"""POST /v1/predict: the mask of good input, and a plain answer to every bad one."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco
from serve_helpers import Post, chunk, deep_png, encoded, error_of, many_scans, picture

from samtune.tasks.classes.predict import ClassPredictor
from samtune.tasks.masks.predict import Predictor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged files


def mask_of(content: bytes) -> np.ndarray:
    with Image.open(BytesIO(content)) as image:
        assert image.mode == "L" and image.format == "PNG"
        return np.asarray(image)


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG put together by hand, for headers that no encoder writes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + data
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "WEBP"])
def test_the_mask_is_that_of_the_predictor(post: Post, predictor: Predictor, format: str) -> None:
    data = encoded(format=format)
    with Image.open(BytesIO(data)) as image:
        wanted = predictor.predict(np.asarray(image.convert("RGB")))
    response = post(data)
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    assert np.array_equal(mask_of(response.content), wanted.mask * np.uint8(255))
    assert float(response.headers["X-Samtune-Score"]) == pytest.approx(wanted.score, abs=1e-6)
    assert "X-Samtune-Warnings" not in response.headers


def test_json_holds_coco_rle(post: Post) -> None:
    content = post(encoded(), format="json").json()
    mask = mask_of(post(encoded()).content) > 0
    assert content["size"] == [50, 80]
    assert np.array_equal(coco.decode({"size": content["size"], "counts": content["counts"]}) > 0, mask)
    assert content["area"] == mask.sum() and len(content["bbox"]) == 4
    assert 0 <= content["score"] <= 1 and content["warnings"] == []


def test_prompts_are_used(post: Post, predictor: Predictor) -> None:
    response = post(encoded(), box="[5, 5, 40, 30]", points="[[20, 20], [3, 3]]", labels="[1, 0]")
    wanted = predictor.predict(
        np.asarray(picture()), boxes_xyxy=[5, 5, 40, 30], points_xy=[[20, 20], [3, 3]], labels=[1, 0]
    )
    assert np.array_equal(mask_of(response.content) > 0, wanted.mask)
    assert "tuned with prompt 'none'" in response.headers["X-Samtune-Warnings"]


def test_a_box_that_sticks_out_is_clipped_and_said(post: Post) -> None:
    response = post(encoded(), box="[-5, 5, 400, 30]")
    assert response.status_code == 200 and "cut to the image" in response.headers["X-Samtune-Warnings"]
    assert response.content == post(encoded(), box="[0, 5, 80, 30]").content


def frames(format: str) -> bytes:
    return encoded(format=format, save_all=True, append_images=[picture(seed=1)])


def text_bomb() -> bytes:
    bomb = b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9)
    return png(16, 16, data=chunk(b"zTXt", bomb))


def grey16() -> Image.Image:
    return Image.fromarray(np.linspace(0, 51000, 4000).astype(np.uint16).reshape(50, 80))


def bad_images() -> Iterator[Any]:
    whole, jpeg = encoded(), encoded(format="JPEG")
    yield pytest.param(b"", 422, "empty_image", id="zero bytes")
    yield pytest.param(b"hello " * 50, 415, "unsupported_image", id="text")
    yield pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image", id="svg")
    yield pytest.param(b"%PDF-1.7\n" + b"\0" * 99, 415, "unsupported_image", id="pdf")
    yield pytest.param(encoded(format="GIF"), 415, "unsupported_image", id="gif")
    yield pytest.param(np.random.default_rng(1).bytes(999), 415, "unsupported_image", id="random bytes")
    yield pytest.param(jpeg[: len(jpeg) // 2], 422, "corrupt_image", id="truncated jpeg")
    yield pytest.param(jpeg[:10], 422, "corrupt_image", id="jpeg of 10 bytes")
    yield pytest.param(whole[: len(whole) // 2], 422, "corrupt_image", id="truncated png")
    yield pytest.param(whole[:-12], 422, "corrupt_image", id="png without IEND")
    yield pytest.param(whole[:8], 422, "corrupt_image", id="png magic alone")
    yield pytest.param(text_bomb(), 422, "corrupt_image", id="png text bomb")
    yield pytest.param(b"II*\0" + b"\xff" * 50, 422, "corrupt_image", id="broken tiff")
    yield pytest.param(png(20000, 20000), 413, "image_too_large", id="20000 x 20000")
    yield pytest.param(png(9000, 9000), 413, "image_too_large", id="81 MP")
    yield pytest.param(png(0, 5000), 422, "image_size", id="0 x 5000")
    yield pytest.param(encoded(picture(size=(1, 5000))), 422, "image_size", id="1 x 5000")
    yield pytest.param(frames("TIFF"), 422, "many_frames", id="multi-frame tiff")
    yield pytest.param(frames("WEBP"), 422, "many_frames", id="animated webp")
    yield pytest.param(frames("PNG"), 422, "many_frames", id="animated png")
    yield pytest.param(many_scans(100), 422, "many_scans", id="jpeg of many scans")
    yield pytest.param(encoded(picture("F"), "TIFF"), 422, "bit_depth", id="float tiff")


@pytest.mark.parametrize(("data", "status", "code"), bad_images())
def test_bad_images(post_any: Post, data: bytes, status: int, code: str) -> None:
    response = post_any(data)
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (status, code, "image")


def test_a_tiff_of_five_channels_is_not_only_called_damaged(post_any: Post) -> None:
    file = BytesIO()
    tifffile.imwrite(file, np.zeros((20, 20, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    error = error_of(post_any(file.getvalue()))
    assert error["code"] == "corrupt_image" and "or a TIFF of other channels than grey and RGB" in error["message"]


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(format="JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (encoded(picture("RGBA")), "transparency"),
        (encoded(picture("P")), "palette"),
        (encoded(picture("L")), "grey"),
        (encoded(picture("LA")), "grey image with transparency"),
        (encoded(picture("1")), "black-and-white"),
        (encoded(picture("CMYK"), "JPEG"), "CMYK"),
        (oriented(), "EXIF"),
        (encoded(grey16()), "values from 0 to 51000: 0 to 65535"),
        (encoded(grey16(), "TIFF"), "values from 0 to 51000: 0 to 65535"),
        (deep_png(top=65535, width=80, height=50), "16-bit colour"),
    ],
    ids=["rgba", "palette", "grey", "grey alpha", "1 bit", "cmyk", "exif", "16 bit", "16 bit tiff", "16 bit colour"],
)
def test_odd_images_are_used_and_said(post: Post, data: bytes, warning: str) -> None:
    response = post(data, format="json")
    assert response.status_code == 200 and warning in " ".join(response.json()["warnings"])
    assert response.json()["size"] == ([80, 50] if warning == "EXIF" else [50, 80])
    assert warning in post(data).headers["X-Samtune-Warnings"]


MANY = str([[1, 1]] * 10_000)
BAD_FIELDS = [
    ({"box": "[1, 2, 3]"}, "invalid_box", "box"),
    ({"box": "[30, 5, 10, 9]"}, "invalid_box", "box"),
    ({"box": "[90, 5, 99, 9]"}, "invalid_box", "box"),
    ({"box": '["a", 1, 2, 3]'}, "invalid_box", "box"),
    ({"box": "[true, 1, 2, 3]"}, "invalid_box", "box"),
    ({"box": "5"}, "invalid_box", "box"),
    ({"box": "[0, 0, NaN, 5]"}, "invalid_json", "box"),
    ({"box": "[0, 0, Infinity, 5]"}, "invalid_json", "box"),
    ({"box": "[0, 0, 1e999, 5]"}, "invalid_box", "box"),
    ({"box": f"[0, 0, {'9' * 400}, 5]"}, "invalid_box", "box"),
    ({"box": f"[0, 0, {'9' * 5000}, 5]"}, "invalid_json", "box"),
    ({"box": "[0, 0, 5"}, "invalid_json", "box"),
    ({"box": "[" * 100_000}, "invalid_json", "box"),
    ({"box": ""}, "invalid_json", "box"),
    ({"points": "[[80, 5]]"}, "invalid_points", "points"),
    ({"points": "[[-1, 5]]"}, "invalid_points", "points"),
    ({"points": "[[1, 5, 6]]"}, "invalid_points", "points"),
    ({"points": "[[1, 5], null]"}, "invalid_points", "points"),
    ({"points": "[1, 5]"}, "invalid_points", "points"),
    ({"points": "[]"}, "invalid_points", "points"),
    ({"points": "{}"}, "invalid_points", "points"),
    ({"points": MANY}, "too_many_points", "points"),
    ({"points": "[[1, 5]]", "labels": "[2]"}, "invalid_labels", "labels"),
    ({"points": "[[1, 5]]", "labels": "[1, 0]"}, "invalid_labels", "labels"),
    ({"points": "[[1, 5]]", "labels": '"a"'}, "invalid_labels", "labels"),
    ({"labels": "[1]"}, "invalid_labels", "labels"),
    ({"format": "gif"}, "unknown_format", "format"),
    ({"boxx": "[1, 2, 3, 4]"}, "unknown_field", None),
    ({"box": ["[1, 2, 3, 4]", "[1, 2, 3, 4]"]}, "repeated_field", "box"),
]


@pytest.mark.parametrize(("fields", "code", "field"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_bad_fields(post: Post, fields: dict[str, Any], code: str, field: str | None) -> None:
    response = post(encoded(), **fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (422, code, field)


def test_messages_name_the_index_or_the_near_name(post: Post) -> None:
    assert "point 1 " in error_of(post(encoded(), points="[[1, 1], [99, 1]]"))["message"]
    assert "point 1: " in error_of(post(encoded(), points="[[1, 1], [99]]"))["message"]
    assert "box 0 " in error_of(post(encoded(), box="[9, 1, 5, 5]"))["message"]
    assert "Did you mean 'points'?" in error_of(post(encoded(), point="[[1, 1]]"))["message"]
    assert "<b>" not in post(encoded(), **{"<b>": "1"}).text


@pytest.mark.parametrize("field", ["box", "points", "labels", "format", "class"])
def test_a_classifier_has_no_prompts(classify: Post, field: str) -> None:
    response = classify(encoded(), **{field: "[1, 2, 3, 4]"})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (422, "unknown_field") and "Known: image." in error["message"]


def test_classes_are_those_of_the_predictor(classify: Post, classifier: ClassPredictor) -> None:
    wanted = classifier.predict(np.asarray(picture()))
    response = classify(encoded())
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    content = response.json()
    assert (content["class"], content["probability"]) == wanted.ranking[0]
    assert [(entry["class"], entry["probability"]) for entry in content["ranking"]] == list(wanted.ranking)
    assert len(content["ranking"]) == 5 and content["warnings"] == []


def test_what_was_done_to_a_picture_is_said_with_its_class(classify: Post) -> None:
    content = classify(oriented()).json()
    assert set(content) == {"class", "probability", "ranking", "warnings"}
    assert "EXIF" in " ".join(content["warnings"])


def test_a_picture_too_long_for_a_classifier(classify: Post, post: Post) -> None:
    long = encoded(picture(size=(900, 8)))
    response = classify(long)
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (422, "image_size", "image")
    assert "900 x 8 pixels, one side more than 100 times the other" in error["message"]
    assert post(long).status_code == 200


@pytest.mark.parametrize("text", ["http://127.0.0.1:9/a.png", "../../etc/passwd", "a" * 1000])
def test_an_address_or_path_is_not_fetched(any_client: TestClient, text: str) -> None:
    response = any_client.post("/v1/predict", files={"image": (None, text)})
    assert (response.status_code, error_of(response)["code"]) == (422, "image_is_no_file")


def test_the_file_name_is_ignored(post_any: Post) -> None:
    assert post_any(encoded(), name="../../etc/passwd").content == post_any(encoded()).content


def test_forms_that_are_none(client: TestClient) -> None:
    def send(**options: Any) -> tuple[int, str]:
        response = client.post("/v1/predict", **options)
        return response.status_code, error_of(response)["code"]

    form = "multipart/form-data"
    assert send(content=encoded(), headers={"Content-Type": "image/png"}) == (415, "not_multipart")
    assert send(json={"image": "x"}) == (415, "not_multipart")
    assert send() == (415, "not_multipart")
    assert send(content=b"x", headers={"Content-Type": form}) == (400, "no_boundary")
    broken = {"Content-Type": f"{form}; boundary=a"}
    assert send(content=b"no form at all", headers=broken) == (400, "bad_form")
    for charset in ("undefined", "punycode", "idna", "utf-16", "no such charset"):
        whole = b'--a\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n1\r\n--a--\r\n'
        status, _ = send(content=whole, headers={"Content-Type": f"{form}; boundary=a; charset={charset}"})
        assert status in (400, 422)
    assert send(content=b"--a\r\nX: y\r\n\r\nz\r\n--a--\r\n", headers=broken)[0] == 400
    assert send(content=b"", headers=broken)[0] in (400, 422)
    assert send(files={"format": (None, "png")}) == (422, "missing_image")
    assert send(files={"image": ("a", encoded()), "box": ("b", b"[1,2,3,4]")}) == (422, "field_is_file")
    assert send(files=[("image", ("a", b"x"))] * 21) == (400, "too_many_parts")
    assert send(files=[("box", (None, "1"))] * 20) == (400, "too_many_parts")
    assert send(files={"image": ("a", encoded()), "box": (None, "1" * 300_000)}) == (400, "part_too_large")


@pytest.mark.parametrize("count", [2, 17])
def test_a_request_has_one_picture(any_client: TestClient, count: int) -> None:
    response = any_client.post("/v1/predict", files=[("image", ("a", encoded()))] * count)
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (422, "many_images", "image")
    assert f"there are {count}." in error["message"]


def test_a_cut_off_form_is_refused(any_client: TestClient) -> None:
    head = b'--a\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    response = any_client.post(
        "/v1/predict", content=head + encoded()[:500], headers={"Content-Type": "multipart/form-data; boundary=a"}
    )
    assert response.status_code in (400, 422) and error_of(response)


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(any_client: TestClient, chunked: bool) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        yield b'--a\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(400):
            sent += 10_000
            yield b"0" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=a"}
    content: Any = stream() if chunked else b"0" * 3_000_001
    response = any_client.post("/v1/predict", content=content, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


def damaged(count: int, formats: tuple[str, ...]) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    small = picture(size=(24, 16))
    originals = [encoded(small, format) for format in formats]
    for i in range(count):
        data = bytearray(originals[i % len(originals)])
        for place in rng.integers(4, len(data), 1 + i % 7):
            data[place] = rng.integers(256)
        yield bytes(data)


def test_damaged_files_are_never_a_server_error(post_any: Post) -> None:
    answers = [post_any(data) for data in damaged(150, ("PNG", "JPEG", "WEBP", "BMP", "TIFF"))]
    statuses = {response.status_code for response in answers}
    assert statuses <= {200, 413, 415, 422} and {200, 422} <= statuses
    assert all(error_of(response) for response in answers if response.status_code != 200)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from Linux")
def test_two_thousand_damaged_files_leave_no_memory_behind(post: Post) -> None:
    def in_use() -> int:
        """Bytes of this process and of the one that decodes for it."""
        children = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in ["self", *" ".join(children).split()]]
        return sum(map(int, pages)) * resource.getpagesize()

    assert {post(data).status_code for data in damaged(200, ("PNG", "JPEG"))} <= {200, 413, 415, 422}
    before = in_use()
    assert {post(data).status_code for data in damaged(2000, ("PNG", "JPEG"))} <= {200, 413, 415, 422}
    assert in_use() - before < 50_000_000
