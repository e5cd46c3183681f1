"""Every kind of bad file is an error with its reason, every odd but usable one a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.data.pair_splits import check_pairs, verify_pairs
from samtune.data.pairs import find_pairs
from samtune.errors import ConfigError, DataError
from samtune.tasks.masks.splits import BINARY, recognises, verify_folder

NAMES = ["a", "b", "c"]


def report_after(folder: Path, name: str, content: bytes | np.ndarray | Image.Image, **options: object):
    """Verifies `folder` with the file `name` replaced."""
    path = folder / name
    for old in path.parent.glob(f"{path.stem}.*"):
        old.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        picture.save(path, **options)
    return verify_pairs(find_pairs(folder), BINARY)


def rectangle(height: int = 30, width: int = 40, value: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[5:15, 5:20] = value
    return mask


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_good_folder_is_silent(make_folder) -> None:
    report = verify_folder(make_folder(NAMES))
    assert report.errors == () and report.warnings == () and report.summary() == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("masks/b.png", rectangle(40, 30), "size mismatch, mask 30 x 40, image 40 x 30"),
        ("masks/b.png", rectangle(60, 80), "size mismatch, mask 80 x 60"),
        ("images/b.png", b"", "empty file"),
        ("images/b.jpg", b"text, no picture", "not a PNG, JPEG"),
        ("masks/b.png", rectangle(value=1) * (1 + np.eye(30, 40, dtype=np.uint8)), "3 classes"),
        ("images/b.png", np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels; at least 8 x 8"),
        ("masks/b.jpg", np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1)), "not a binary mask"),
    ],
    ids=["size", "size2", "zero-bytes", "text", "classes", "1x1", "grey-jpeg"],
)  # fmt: skip
def test_errors(make_folder, name: str, content: bytes | np.ndarray, reason: str) -> None:
    report = report_after(make_folder(NAMES), name, content)
    assert len(report.errors) == 1 and reason in report.errors[0] and f"{name.split('/')[1]}: " in report.errors[0]


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("masks/b.jpg", rectangle(), {"quality": 100}, "JPEG mask"),
        ("masks/b.png", Image.fromarray(rectangle()).convert("P"), {}, "palette mask"),
        ("masks/b.png", Image.fromarray(rectangle()).convert("RGB"), {}, "RGB mask of equal channels"),
        ("masks/b.png", Image.fromarray(rectangle()).convert("RGBA"), {}, "RGBA mask of equal channels"),
        ("masks/b.png", rectangle() * 0, {}, "mask is all background"),
        ("masks/b.png", rectangle() * 0 + 255, {}, "mask is all foreground"),
        ("masks/b.png", 255 - rectangle(), {}, "mask looks inverted"),
        ("images/b.png", np.full((30, 40, 3), 9, np.uint8), {}, "constant image"),
        ("images/b.png", np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50, {}, "299.75 to 59650.2; 2 have 8 bits"),
    ],
    ids=["jpeg", "palette", "rgb", "rgba", "black", "white", "inverted", "constant", "16-bit"],
)  # fmt: skip
def test_warnings(make_folder, name: str, content, options: dict, reason: str) -> None:
    report = report_after(make_folder(NAMES), name, content, **options)
    assert report.errors == ()
    assert len(report.warnings) == 1 and reason in report.warnings[0]
    assert tuple(report.summary()) == report.warnings


def test_warnings_of_one_kind_are_summed_up_beyond_three_files(make_folder) -> None:
    folder = make_folder([*NAMES, "d", "e"])
    for name in [*NAMES, "d"]:
        picture = Image.open(folder / "masks" / f"{name}.png").convert("RGB")
        picture.save(folder / "masks" / f"{name}.png")
    report = report_after(folder, "masks/e.png", rectangle() * 0)
    assert len(report.warnings) == 5
    first, empty = folder / "masks" / "a.png", folder / "masks" / "e.png"
    assert report.summary() == [
        f"4 files, such as {first}: RGB mask of equal channels; one grey channel is clearer",
        f"{empty}: mask is all background",
    ]


def test_exif_orientation_on_one_is_an_error_on_both_a_warning(make_folder) -> None:
    folder = make_folder(NAMES)
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    report = report_after(folder, "images/b.jpg", noise, exif=orientation(6))
    assert len(report.errors) == 1 and "EXIF orientation 6, but 1 in its mask" in report.errors[0]
    report = report_after(folder, "masks/b.png", rectangle(40, 30), exif=orientation(6))
    assert report.errors == () and "EXIF orientation 6 on image and mask" in report.warnings[0]


def test_all_masks_empty_is_an_error(make_folder) -> None:
    folder = make_folder(NAMES)
    for name in NAMES:
        Image.fromarray(rectangle() * 0).save(folder / "masks" / f"{name}.png")
    assert "all 3 masks are empty" in verify_folder(folder).errors[-1]


def test_everything_is_listed_at_once(make_folder) -> None:
    folder = make_folder([*NAMES, "d", "e"])
    (folder / "masks" / "a.png").unlink()
    (folder / "images" / "b.png").write_bytes(b"")
    Image.fromarray(rectangle(20, 20)).save(folder / "masks" / "c.png")
    whole = (folder / "images" / "d.png").read_bytes()
    (folder / "images" / "d.png").write_bytes(whole[: len(whole) // 2])
    errors = verify_folder(folder).errors
    assert len(errors) == 4
    assert [any(text in e for e in errors) for text in ("no mask", "empty file", "size mismatch", "damaged")] == [
        True
    ] * 4


def test_folder_of_parts(make_folder) -> None:
    make_folder(NAMES, "all/train")
    folder = make_folder(NAMES, "all/val", seed=1).parent
    assert verify_folder(folder).errors == ()
    (folder / "val" / "images" / "a.png").write_bytes(b"")
    assert len(verify_folder(folder).errors) == 1


def test_bad_files_are_told_each_time_until_they_are_mended(make_folder) -> None:
    folder = make_folder(NAMES)
    whole = (folder / "masks" / "a.png").read_bytes()
    pairs = find_pairs(folder)
    first = check_pairs(pairs, BINARY)
    (folder / "masks" / "a.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)1 problem\(s\).*a\.png: empty file"):
            check_pairs(pairs, BINARY)
    (folder / "masks" / "a.png").write_bytes(whole)
    assert check_pairs(pairs, BINARY) == first


def test_small_files_and_warnings_are_told_each_time(make_folder) -> None:
    folder = make_folder(NAMES)
    Image.fromarray(np.full((7, 30, 3), 9, np.uint8)).save(folder / "images" / "a.png")
    Image.fromarray(rectangle() * 0).save(folder / "masks" / "b.png")
    reports = [verify_pairs(find_pairs(folder), BINARY) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].errors == (f"{folder / 'images' / 'a.png'}: 30 x 7 pixels; at least 8 x 8 are needed",)
    assert reports[0].warnings == (f"{folder / 'masks' / 'b.png'}: mask is all background",)


def test_folders_of_pairs_are_recognised_by_names(make_folder, tmp_path: Path) -> None:
    assert recognises(make_folder(["a"], "flat")) and not recognises(tmp_path / "gone")
    parts = make_folder(["a"], "parts/val").parent
    assert recognises(parts)
    (parts / "train.json").touch()  # a list with labels: pictures with classes
    assert not recognises(parts) and not recognises(tmp_path)
    with pytest.raises(ConfigError, match=r"'vtab/cifar' names a data set.*leave it out"):
        verify_folder(parts, name="vtab/cifar")
