"""Pictures of any depth and number of channels: what is read, what becomes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import read_pixels, read_stack, read_stored, shown
from samtune.data.channels.tiff import picture_size
from samtune.data.frames import augmented, resize, train_augmentation
from samtune.data.pictures import read_image
from samtune.errors import DataError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4000, (20, 30, 5)).astype(np.uint16)
BYTES = RNG.integers(0, 256, (20, 30, 5)).astype(np.uint8)


def save(path: Path, values: np.ndarray, layout: str, **how: object) -> Path:
    """Writes (H, W, C) values as a TIFF: `contig` (H, W, C), `separate` (C, H, W), or a page per channel."""
    if layout == "contig":
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", **how)
    elif layout == "separate":
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), photometric="minisblack", planarconfig="separate", **how)
    else:
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), photometric="minisblack", **how)
    return path


@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("values", [DEEP, BYTES, DEEP / 7], ids=["uint16", "uint8", "float64"])
def test_channels_of_a_tiff(tmp_path: Path, layout: str, values: np.ndarray) -> None:
    stored = read_stored(save(tmp_path / "a.tif", values, layout, compression="zlib"))
    assert stored.values.dtype == values.dtype and np.array_equal(stored.values, values)
    assert stored.pages == (5 if layout == "pages" else 1) and not stored.alpha


def test_a_range_is_mapped_to_0_to_255_and_cut_off(tmp_path: Path) -> None:
    values = np.array([[90, 100, 200, 300, 500]] * 8, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read_pixels(tmp_path / "a.png", Pixels(3, (100, 300)))
    assert found.dtype == np.float32 and found.shape == (8, 5, 3)
    assert found[0, :, 0].tolist() == [0, 0, 127.5, 255, 255]  # 127.5: not rounded
    assert (found[..., :1] == found).all()  # grey: three equal channels


def test_a_range_is_of_8_bits_too(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30, np.uint8)).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png", Pixels(3, (20, 40)))[0, 0].tolist() == [127.5] * 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), DEEP[:, :, 2::-1])  # it takes blue first; its TIFF is compressed by LZW
    assert np.array_equal(read_stored(path).values, DEEP[:, :, :3])
    assert read_pixels(path, Pixels(3, (0, 4000)))[3, 4] == pytest.approx(DEEP[3, 4, :3] * (255 / 4000), abs=1e-4)


def test_plain_pictures_are_what_they_were(tmp_path: Path) -> None:
    for name, picture in {
        "grey.png": Image.fromarray(BYTES[..., 0]),
        "rgb.tif": Image.fromarray(BYTES[..., :3]),
        "rgba.tif": Image.fromarray(BYTES[..., :4]),
        "deep.png": Image.fromarray(DEEP[..., 0]),
        "deep.tif": Image.fromarray(DEEP[..., 0]),
        "palette.tif": Image.fromarray(BYTES[..., :3]).quantize(8),
    }.items():
        picture.save(tmp_path / name)
        found = read_pixels(tmp_path / name)
        assert found.dtype == np.uint8 and np.array_equal(found, read_image(tmp_path / name)), name


def test_transparency_is_dropped_or_a_channel(tmp_path: Path) -> None:
    Image.fromarray(BYTES[..., :4]).save(tmp_path / "a.png")
    assert np.array_equal(read_pixels(tmp_path / "a.png", Pixels(4)), BYTES[..., :4])
    assert np.array_equal(read_pixels(tmp_path / "a.png", Pixels(3, (0, 255))), BYTES[..., :3])


@pytest.mark.parametrize(
    ("values", "layout", "pixels", "message"),
    [
        (np.zeros((20, 30, 13), np.uint8), "contig", Pixels(12), "13 channels; at most 12 are possible: leave some"),
        (np.zeros((20, 30, 13), np.uint8), "pages", Pixels(12), "13 pages, and at most 12 can be channels"),
        (
            BYTES,
            "contig",
            Pixels(4),
            "5 channels, but the model takes 4; save it with 4, or tune a model with model.channels: 5",
        ),
        (
            BYTES[..., 0],
            "whole",
            Pixels(5),
            "1 channel, but the model takes 5; save it with 5, or tune a model with model.channels: 3",
        ),
        (BYTES, "contig", RGB, "5 channels, but the model takes 3"),
        (BYTES[..., :3], "pages", RGB, "3 pages; if they are channels, save them as one page of RGB"),
        (DEEP, "contig", Pixels(5), r"more than 8 bits \(uint16, \d+ to \d+\).*tune with data.range"),
        (np.where(DEEP < 100, np.nan, DEEP), "contig", Pixels(5, (0, 9)), r"NaN or infinity in \d+ of 3,000 values"),
        (DEEP[..., 0] * 1j, "whole", Pixels(5, (0, 9)), "values of complex128"),
    ],
)
def test_what_does_not_fit_is_explained(
    tmp_path: Path, values: np.ndarray, layout: str, pixels: Pixels, message: str
) -> None:
    path = tmp_path / "a.tif"
    if layout == "whole":
        tifffile.imwrite(path, values)
    else:
        save(path, values, layout)
    with pytest.raises(DataError, match=f"a.tif: {message}"):
        read_pixels(path, pixels)


def test_damaged_and_turned_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", DEEP, "contig")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.tif: damaged file"):
        read_pixels(path, Pixels(5, (0, 9)))
    save(path, DEEP, "contig", extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(DataError, match=r"a\.tif: orientation 6, which is read of 8 bits only"):
        read_pixels(path, Pixels(5, (0, 9)))


def test_slices_come_one_by_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", DEEP, "pages")
    slices = list(read_stack(path, Pixels(3, (0, 4000))))
    assert len(slices) == 5 and slices[0].shape == (20, 30, 3)
    assert slices[4][..., 1] == pytest.approx(DEEP[..., 4] * (255 / 4000), abs=1e-4)
    tifffile.imwrite(path, np.stack([BYTES[..., :3]] * 2), photometric="rgb")
    assert [np.array_equal(found, BYTES[..., :3]) for found in read_stack(path, RGB)] == [True, True]
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: no TIFF"):
        next(read_stack(tmp_path / "b.png", RGB))
    with pytest.raises(DataError, match=r"a\.tif, page 1: 3 channels, but the model takes 5"):
        next(read_stack(path, Pixels(5)))


def test_a_slice_that_cannot_be_used_is_told_by_its_page(tmp_path: Path) -> None:
    values = np.zeros((3, 20, 30), np.float32)
    values[1, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.raises(DataError, match=r"a\.tif: page 2: NaN or infinity in 1 of 600 values"):
        list(read_stack(tmp_path / "a.tif", Pixels(3, (0, 1))))


def test_people_see_the_first_three_channels() -> None:
    assert np.array_equal(shown(BYTES), BYTES[..., :3])
    assert shown(np.full((2, 2, 2), [10.0, 20.8], np.float32)).tolist() == [[[15] * 3] * 2] * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_are_resized_alike(dtype: type) -> None:
    image = BYTES.astype(dtype)
    small = resize(image, (10, 15))
    assert small.shape == (10, 15, 5) and small.dtype == dtype
    rgb = resize(np.ascontiguousarray(BYTES[..., :3]), (10, 15))
    assert np.abs(small[..., :3].astype(float) - rgb).max() <= 1  # which Pillow rounds in each direction


@pytest.mark.parametrize("channels", [2, 3, 5, 12])
def test_every_channel_is_augmented(channels: int) -> None:
    mask = np.zeros((32, 32), np.uint8)
    for kind in (np.uint8, np.float32):
        image = np.full((32, 32, channels), 128, kind)
        change = train_augmentation(32, turns=True, channels=channels)
        found = [augmented(change, image, mask, seed=seed)[0] for seed in range(12)]
        assert all(f.shape == image.shape and f.dtype == kind and 0 <= f.min() <= f.max() <= 255 for f in found)
        assert any((f[16, 16] != 128).any() for f in found)
        if channels != 3:  # each channel by itself
            assert any(len(set(f[16, 16].tolist())) > 1 for f in found)
        assert np.array_equal(augmented(change, image, mask, seed=3)[0], found[3])


@pytest.mark.parametrize("how", ["contig", "separate", "pages", "float", "plain", "turned"])
def test_the_size_of_any_picture_is_in_its_header(tmp_path: Path, how: str) -> None:
    path, values = tmp_path / "a.tif", np.zeros((12, 20, 5), dtype=np.uint8)
    if how in ("contig", "separate"):
        ordered = values if how == "contig" else np.moveaxis(values, 2, 0)
        tifffile.imwrite(path, ordered, photometric="minisblack", planarconfig=how)
    elif how == "pages":
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), photometric="minisblack")
    elif how == "float":
        tifffile.imwrite(path, values[..., 0].astype(np.float32))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6 if how == "turned" else 1
        Image.fromarray(values[..., 0].T if how == "turned" else values[..., 0]).save(path, exif=exif)
    assert picture_size(path) == (20, 12)
    assert read_stored(path).values.shape[:2] == (12, 20)
    path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"a\.tif: "):
        picture_size(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_on_its_side_is_turned(tmp_path: Path, compression: str | None) -> None:
    """Orientation 6 asks for a quarter turn clockwise: the first row becomes the last column."""
    values = np.random.default_rng(0).integers(0, 256, (20, 12), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, extratags=[(0x0112, 3, 1, 6, True)])
    assert (read_image(tmp_path / "a.tif")[..., 0] == np.rot90(values, -1)).all()
