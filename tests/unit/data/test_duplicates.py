"""Near-duplicates."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from samtune.data.facts import (
    ImageFacts,
    difference_hash,
    group_near,
    hash_images,
    image_facts,
    near_across,
    near_pairs,
    rgb_facts,
)
from samtune.errors import DataError


def test_difference_hash_of_a_ramp() -> None:
    ramp = np.tile(np.arange(90, dtype=np.uint8)[None, :, None], (80, 1, 3))
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(np.ascontiguousarray(ramp[:, ::-1])) == 0
    half_flipped = ramp.copy()
    half_flipped[:40] = ramp[:40, ::-1]
    assert difference_hash(half_flipped) == 2**32 - 1


def test_groups_hold_what_is_near_through_others() -> None:
    images = [ImageFacts(9, 9, 1, [], "", bits) for bits in (0, 2**40 - 1, 0b1111, 0b11111111)]
    assert list(near_pairs(images)) == [(0, 2), (2, 3)]  # 0 and 3 differ in 8 bits
    assert group_near(images) == [[0, 2, 3], [1]]
    assert group_near([images[3], images[0]]) == [[0], [1]]


def test_near_duplicates_of_other_parts_are_counted() -> None:
    images = [ImageFacts(9, 9, 1, [], content, bits) for content, bits in (("a", 0), ("b", 1), ("a", 0), ("c", 3))]
    parts = ["train", "train", "test", "test"]
    assert near_across(parts, images, most=9) == (3, [(0, 3), (1, 2), (1, 3)])  # 0 and 2 are the same
    assert near_across(parts, images, most=1) == (3, [(0, 3)])
    assert near_across([], [], most=1) == (0, [])


def test_facts_of_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "b.png", exif=exif)
    Image.fromarray(np.full((20, 30), 700, np.uint16)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_text("text")
    for _ in range(2):
        upright, turned, odd, bad = image_facts([tmp_path / f"{name}.png" for name in "abcd"])
        assert (upright.width, upright.height, upright.orientation, upright.oddities) == (30, 20, 1, [])
        assert turned == upright._replace(orientation=6)  # the same picture
        assert [line.split(",")[0] for line in odd.oddities] == ["constant image"] and odd.levels == [700] * 4
        assert isinstance(bad, DataError) and str(bad).startswith(f"{tmp_path / 'd.png'}: not a PNG")
    with pytest.raises(DataError, match=r"d\.png: not a PNG"):
        hash_images([tmp_path / "a.png", tmp_path / "d.png"])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_images_say_how_they_are_read(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 3000, (20, 30), dtype=np.uint16)
    grey, colour, plain = (tmp_path / f"{name}.{suffix}" for name in ("grey", "colour", "plain"))
    cv2.imwrite(str(grey), values)
    cv2.imwrite(str(colour), np.dstack([values] * 3))  # Pillow can't write such a file
    Image.fromarray(np.dstack([values] * 3).astype(np.uint8)).save(plain)
    lines = [facts.oddities for facts in rgb_facts([grey, colour, plain]) if isinstance(facts, ImageFacts)]
    scaled = "16-bit image, scaled to 8 bits as one of 12 bits (0 to 4095); save it with 8 bits for another scale"
    upper = "16-bit colour image, the upper 8 bits are read; save it with 8 bits if that is too dark"
    assert lines == [[scaled], [upper], []]
