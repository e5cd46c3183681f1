"""Finding pairs and decoding images and masks."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.data.pairs import find_pairs, scan_folder
from samtune.data.pictures import read_image
from samtune.errors import DataError
from samtune.tasks.binary import read_mask

GREY = np.arange(40 * 30, dtype=np.uint32).reshape(30, 40)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def half(value: int, dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros((30, 40), dtype=dtype)
    mask[:, :10] = value
    return mask


EXPECTED = half(1).astype(bool)


def test_pairs_are_sorted_by_name(make_folder) -> None:
    pairs = find_pairs(make_folder(["b", "a", "c"]))
    assert [p.name for p in pairs] == ["a", "b", "c"]
    assert pairs[0].image.name == "a.png" and pairs[0].mask.parent.name == "masks"


def test_other_files_are_ignored(make_folder) -> None:
    folder = make_folder(["a"])
    (folder / "images" / ".DS_Store").touch()
    (folder / "images" / "notes.txt").touch()
    assert len(find_pairs(folder)) == 1


def test_all_layout_problems_are_in_one_message(make_folder) -> None:
    folder = make_folder(["good", "no_mask", "orphan", "twice", "link", "dir"])
    images, masks = folder / "images", folder / "masks"
    (masks / "no_mask.png").unlink()
    (images / "orphan.png").unlink()
    (images / "twice.jpg").write_bytes((images / "twice.png").read_bytes())
    (images / "link.png").unlink()
    (images / "link.png").symlink_to(images / "gone.png")
    (images / "dir.png").unlink()
    (images / "dir.png").mkdir()
    with pytest.raises(DataError) as caught:
        find_pairs(folder)
    message = str(caught.value)
    for part in (
        "5 problem(s)",
        "images/no_mask.png: no mask named no_mask.*",
        "masks/orphan.png: orphan mask, no image named orphan.*",
        "twice.png: duplicate stem 'twice', twice.jpg has it too",
        "link.png: dangling link to",
        "dir.png: a folder or special file",
    ):
        assert part in message
    pairs, problems = scan_folder(folder)
    assert [p.name for p in pairs] == ["good", "twice"] and len(problems) == 5


def test_upper_case_extensions_are_read(make_folder) -> None:
    folder = make_folder(["a", "b"])
    for sub in ("images", "masks"):
        (folder / sub / "a.png").rename(folder / sub / "a.PNG")
    assert [pair.mask.name for pair in find_pairs(folder)] == ["a.PNG", "b.png"]


def renamed_masks(folder: Path, image: str, mask: str, numbers: range) -> None:
    for index in numbers:
        path = folder / "masks" / f"{image.format(index)}.png"
        path.rename(path.with_name(f"{mask.format(index)}.png"))


@pytest.mark.parametrize(
    ("image", "mask", "rule"),
    [("n{}", "n{}_mask", "STEM_mask"), ("{}", "mask_{}", "mask_STEM"), ("a{}", "gt-a{}.mask", "gt-STEM.mask")],
)
def test_masks_named_by_one_rule_are_paired_and_it_is_said_once(
    make_folder, caplog, image: str, mask: str, rule: str
) -> None:
    folder = make_folder([image.format(index) for index in range(5, 25)])
    renamed_masks(folder, image, mask, range(5, 25))
    with caplog.at_level("INFO", logger="samtune.data.pairs"):
        first, again = find_pairs(folder), find_pairs(folder)
    assert first == again and len(first) == 20
    assert {pair.mask.stem for pair in first} == {mask.format(index) for index in range(5, 25)}
    assert all(mask.format(pair.name.lstrip("na")) == pair.mask.stem for pair in first)
    (line,) = caplog.messages
    assert line.endswith(f"20 masks are paired with images by one rule: STEM.* with {rule}.*")


def test_what_a_rule_leaves_over_is_told(make_folder) -> None:
    folder = make_folder([f"n{index}" for index in range(5, 25)])
    renamed_masks(folder, "n{}", "n{}_mask", range(5, 25))
    (folder / "images" / "n7.png").unlink()
    (folder / "masks" / "n9_mask.png").unlink()
    pairs, (unmasked, orphan) = scan_folder(folder)
    assert len(pairs) == 18
    assert "n9.png: no mask named n9.*" in unmasked and "n7_mask.png: orphan mask, no image named n7.*" in orphan


@pytest.mark.parametrize(
    "names", [["n1", "n2", "n3", "n4_gt"], ["n1_mask", "n2", "n3", "n4"], ["n1_mask", "x", "y", "z"]]
)
def test_a_rule_that_not_all_masks_follow_is_none(make_folder, names: list[str]) -> None:
    folder = make_folder(["n1", "n2", "n3", "n4"])
    for index, name in enumerate(names, start=1):
        (folder / "masks" / f"n{index}.png").rename(folder / "masks" / f"{name}.tmp")
    for path in (folder / "masks").iterdir():
        path.rename(path.with_suffix(".png"))
    assert scan_folder(folder)[1] != []


@pytest.mark.parametrize(("image", "mask"), [("image_{}", "mask_{}"), ("img{}_raw", "img{}_gt")])
def test_masks_named_by_another_rule_get_one_line(make_folder, image: str, mask: str) -> None:
    folder = make_folder([image.format(index) for index in range(5, 25)])
    renamed_masks(folder, image, mask, range(5, 25))
    (folder / "images" / f"{image.format(7)}.png").unlink()
    first, wanted = (
        f"{mask.format(10)}.png for {image.format(10)}.png",
        f"the stem of its image ({image.format(10)}.png)",
    )
    _, (renamed, orphan) = scan_folder(folder)
    assert renamed.startswith(f"{folder / 'masks'}: 19 masks are not named as their images, such as {first}; give each")
    assert wanted in renamed and f"{mask.format(7)}.png: orphan mask" in orphan


def test_names_without_a_rule_get_a_line_each(make_folder) -> None:
    folder = make_folder(["cat", "dog"])
    for old, new in (("cat", "bird"), ("dog", "fish")):
        (folder / "masks" / f"{old}.png").rename(folder / "masks" / f"{new}.png")
    assert len(scan_folder(folder)[1]) == 4


def test_another_reading_is_offered(make_folder, tmp_path: Path) -> None:
    folder = make_folder(["a"])
    (folder / "images").rename(folder / "cats")
    (folder / "masks").rename(folder / "dogs")
    with pytest.raises(
        DataError, match=r"found: cats, dogs\).*classes are for task: classification \(--config folders"
    ):
        find_pairs(folder)


def test_a_folder_that_can_not_be_listed(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(["a"])

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"images: can't be listed \(permission denied\); change its rights"):
        find_pairs(folder)


def test_name_that_is_not_utf8(make_folder) -> None:
    folder = make_folder(["a"])
    try:
        os.rename(folder / "images" / "a.png", os.fsencode(folder / "images") + b"/a\xff.png")
    except OSError:
        pytest.skip("the file system refuses such names")
    with pytest.raises(DataError, match="name is not UTF-8"):
        find_pairs(folder)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images/ and masks/ missing \(found: no such folder\)"):
        find_pairs(tmp_path / "gone")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"masks/ missing \(found: images\)"):
        find_pairs(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="hold no image file"):
        find_pairs(tmp_path)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    image[:, :20] = 255
    path = save(tmp_path / "a.jpg", image, exif=exif, quality=95)
    read = read_image(path)
    assert read.shape == (40, 30, 3)  # a quarter turn clockwise: left becomes top
    assert read[:18].min() > 200 and read[22:].max() < 50


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        ([[0, 257, 128 * 257], [65535, 256, 129]], [[0, 1, 128], [255, 1, 1]]),
        ([[0, 16, 2048], [4095, 8, 7]], [[0, 1, 128], [255, 0, 0]]),  # a camera of 12 bits
        ([[0, 100, 300], [1023, 4, 2]], [[0, 25, 75], [255, 1, 0]]),
        ([[0, 1, 128], [255, 7, 9]], [[0, 1, 128], [255, 7, 9]]),
    ],
    ids=["16", "12", "10", "8"],
)
def test_sixteen_bit_images_are_scaled_by_the_bits_they_use(tmp_path: Path, values: list, read_as: list) -> None:
    read = read_image(save(tmp_path / "a.png", np.array(values, dtype=np.uint16)))
    assert read.dtype == np.uint8 and read.shape == (2, 3, 3)
    assert read[..., 0].tolist() == read_as


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (12, 9), (255, 255, 255)).convert(mode).save(path)
    read = read_image(path)
    assert read.shape == (9, 12, 3) and read.dtype == np.uint8 and read.min() >= 250


@pytest.mark.parametrize(
    "array",
    [half(1), half(255), half(7), half(65535, np.uint16), half(1).astype(bool), np.stack([half(255)] * 3, -1),
     np.stack([half(255)] * 3 + [half(255) | 255], -1)],
    ids=["0-1", "0-255", "0-7", "16-bit", "bool", "rgb", "rgba"],
)  # fmt: skip
def test_lossless_masks(tmp_path: Path, array: np.ndarray) -> None:
    mask = read_mask(save(tmp_path / "a.png", array))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, EXPECTED)


@pytest.mark.parametrize("palette", [[0, 0, 0, 255, 255, 255], [0, 0, 0, 128, 0, 0]], ids=["grey", "coloured"])
def test_palette_masks(tmp_path: Path, palette: list[int]) -> None:
    picture = Image.fromarray(half(1), mode="P")
    picture.putpalette(palette)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), EXPECTED)


def test_grey_palette_is_read_by_colour_not_by_index(tmp_path: Path) -> None:
    picture = Image.fromarray(1 - half(1), mode="P")  # index 0 is white
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), EXPECTED)


def test_only_jpeg_masks_may_be_soft(tmp_path: Path) -> None:
    mask = read_mask(save(tmp_path / "a.jpg", half(255), quality=95))
    np.testing.assert_array_equal(mask, EXPECTED)
    noisy = half(255)
    noisy[:, ::3] ^= np.uint8(5)  # a JPEG saved again as PNG
    noisy[::7] ^= np.uint8(3)
    noisy[::5] ^= np.uint8(8)
    with pytest.raises(DataError, match=r"b\.png: not a binary mask: 16 values, 0\.0%.*save \(mask > 127\) \* 255"):
        read_mask(save(tmp_path / "b.png", noisy))
    with pytest.raises(DataError, match=r"c\.jpg: not a binary mask: .*between 16 and 239 \(at most 1 % in a JPEG"):
        read_mask(save(tmp_path / "c.jpg", (GREY % 256).astype(np.uint8), quality=95))


@pytest.mark.parametrize("kind", ["png", "palette", "rgb", "tif16", "jpg"])
def test_label_pictures_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    """Twelve labels of small objects on 0: none of them would pass 127, and all would be background."""
    labels = np.zeros((60, 60), dtype=np.uint16 if kind == "tif16" else np.uint8)
    for label in range(12):
        labels[5 * label : 5 * label + 2, 10:12] = label
    picture = Image.fromarray(labels)
    if kind == "palette":
        picture = Image.fromarray(labels, mode="P")
        picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    elif kind == "rgb":
        picture = picture.convert("RGB")
    path = tmp_path / f"a.{'jpg' if kind == 'jpg' else 'tif' if kind == 'tif16' else 'png'}"
    picture.save(path, **({"quality": 100} if kind == "jpg" else {}))
    with pytest.raises(DataError, match=r"looks like instance or class labels: values 0 to 1[12]; a binary mask has 0"):
        read_mask(path)


def test_masks_that_are_not_binary_are_refused(tmp_path: Path) -> None:
    classes = half(1)
    classes[:5] = 2
    with pytest.raises(DataError, match=r"c.png: mask with 3 classes, looks like .* labels: values 0 to 2"):
        read_mask(save(tmp_path / "c.png", classes))
    with pytest.raises(DataError, match=r"2 classes, 3 and 200, of which none is 0"):
        read_mask(save(tmp_path / "d.png", np.where(EXPECTED, 200, 3).astype(np.uint8)))
    with pytest.raises(DataError, match="coloured mask: its channels differ"):
        read_mask(save(tmp_path / "f.png", np.stack([half(255), half(0), half(0)], -1)))


def test_unreadable_files_name_file_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        whole = save(tmp_path / f"whole.{suffix}", noise).read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"cut\.{suffix}: damaged file"):
            read_image(tmp_path / f"cut.{suffix}")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    save(tmp_path / "real.gif", half(255))
    (tmp_path / "real.gif").rename(tmp_path / "gif.png")
    frames = [Image.fromarray(half(v)) for v in (1, 255)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    save(tmp_path / "float.tif", half(1).astype(np.float32))
    reasons = {
        "empty.png": "empty file",
        "text.jpg": "not a PNG, JPEG, TIFF, BMP, WEBP file",
        "gif.png": "not a PNG, JPEG, TIFF, BMP, WEBP file",
        "gone.png": "no such file",
        "stack.tif": "more than one frame",
        "float.tif": "outside 16 bits",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            read_image(tmp_path / name)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"text\.jpg: permission denied"):
        read_image(tmp_path / "text.jpg")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_huge_headers_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int], recwarn) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"huge\.png: .*more than 40,000,000"):
        read_image(path)
    assert not recwarn.list  # Pillow's own would be shown beside it
