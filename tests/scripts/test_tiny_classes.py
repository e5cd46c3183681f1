"""The pre-training classes: deterministic, complete, and told apart by what is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tiny_classes import (
    CLASSES,
    COVERS,
    FAMILIES,
    HELD_OUT_GLYPHS,
    OUTLINES,
    SIZE,
    draw_picture,
    draw_pictures,
    family_of,
    glyph_programs,
)
from tiny_classes import FILLS as SHAPE_FILLS


def test_pictures_depend_on_seed_and_index_only() -> None:
    images, labels = draw_pictures(0, 8, seed=1)
    again, same = draw_pictures(4, 4, seed=1)
    other, _ = draw_pictures(4, 4, seed=2)
    assert np.array_equal(images[4:], again) and np.array_equal(labels[4:], same)
    assert not np.array_equal(again, other)
    assert images.shape == (8, SIZE, SIZE, 3) and images.dtype == np.uint8 and labels.dtype == np.int64


def test_every_class_belongs_to_a_family() -> None:
    counts: dict[str, set[int]] = {}
    for label in range(CLASSES):
        family, member = family_of(label)
        counts.setdefault(family, set()).add(member)
    assert counts == {family: set(range(size)) for family, size in FAMILIES.items()}
    assert FAMILIES["shape"] == len(OUTLINES) * len(SHAPE_FILLS)


def test_held_out_glyphs_are_further_programs() -> None:
    assert family_of(CLASSES) == ("glyph", FAMILIES["glyph"])
    _, labels = draw_pictures(0, 200, seed=1, held_out=True)
    assert set(labels) <= set(range(HELD_OUT_GLYPHS))
    assert len(glyph_programs()) == FAMILIES["glyph"] + HELD_OUT_GLYPHS


@pytest.mark.parametrize("label", [*range(0, CLASSES, 7), CLASSES, CLASSES + HELD_OUT_GLYPHS - 1])
def test_pictures_show_something(label: int) -> None:
    spread = [draw_picture(label, np.random.default_rng(seed)).std() for seed in range(8)]
    assert min(spread) > 0.5 and np.mean(spread) > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_a_family_differ_under_the_same_draws(family: str) -> None:
    covers = [COVERS[family](member, np.random.default_rng(5)).ravel() for member in range(FAMILIES[family])]
    assert len({cover.tobytes() for cover in covers}) == FAMILIES[family]
    assert all(cover.min() >= 0 and cover.max() <= 1 for cover in covers)


def test_glyphs_move_but_keep_their_number_of_strokes() -> None:
    assert {len(program) for program in glyph_programs()} == {2, 3, 4}
    assert all(np.abs(program).max() < 4 for program in glyph_programs())


def test_counts_are_true() -> None:
    expected = [*range(1, 9), *range(3, 7), *range(3, 7), *range(4, 8)]
    right = []
    for member, number in enumerate(expected):
        for seed in range(10):
            cover = COVERS["count"](member, np.random.default_rng(seed))
            right.append(cv2.connectedComponents((cover > 0.5).astype(np.uint8))[0] - 1 == number)
    assert np.mean(right) > 0.97  # two scattered ones may touch
