"""Polygons that hold exactly the pixels of their class, colours that differ, and rows of panels with a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.formats.shapes import outlines
from samtune.tasks.semantic.draw import map_row
from samtune.tasks.semantic.evaluate import MapPrediction
from samtune.tasks.semantic.maps import ClassTable
from samtune.tasks.semantic.outputs import annotated, geojson
from samtune.types import IGNORE, MaskArray

RING = np.zeros((12, 16), dtype=bool)
RING[2:10, 3:12] = True
RING[4:7, 5:9] = False
RING[5, 6] = True  # an island in the hole
NOISE = np.random.default_rng(0).random((12, 16)) < 0.4
TABLE = ClassTable.of({0: "sky", 4: "road"}, 255)


def filled(mask: MaskArray) -> MaskArray:
    """Draws the polygons of a mask again, by the even-odd rule of all rings at the centres of pixels."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = np.zeros(mask.size, dtype=int)
    for rings in outlines(mask):
        inside += sum(Outline(ring).contains_points(centres) for ring in rings)
    return (inside % 2 == 1).reshape(mask.shape)


@pytest.mark.parametrize("mask", [RING, NOISE, ~RING, np.ones((3, 4), bool), np.zeros((3, 4), bool)])
def test_polygons_hold_the_pixels_of_the_mask(mask: MaskArray) -> None:
    np.testing.assert_array_equal(filled(mask), mask)


def test_a_hole_belongs_to_its_outline() -> None:
    assert sorted(len(rings) for rings in outlines(RING)) == [1, 2]
    assert all((ring[0] == ring[-1]).all() for rings in outlines(RING) for ring in rings)


def prediction() -> MapPrediction:
    return MapPrediction(RING.astype(np.uint8), np.where(RING, 0.75, 0.5).astype(np.float32))


def test_features_and_annotations_name_their_class() -> None:
    features = geojson(prediction(), TABLE)["features"]
    assert [f["properties"] for f in features] == [
        {"class": "sky", "value": 0, "score": 0.5},
        {"class": "road", "value": 4, "score": 0.75},
    ]
    image = annotated(Path("a.png"), prediction(), TABLE)
    assert (image.width, image.height) == (16, 12)
    assert [(item.category, int(image.mask(item).sum()), item.score) for item in image.objects] == [
        ("sky", int((~RING).sum()), 0.5),
        ("road", int(RING.sum()), 0.75),
    ]


def test_colours_differ() -> None:
    colours = np.array(distinct_colours(20), dtype=int)
    assert len(set(map(tuple, colours.tolist()))) == 20
    near = np.abs(colours[1:] - colours[:-1]).sum(axis=1)
    assert near.min() > 90


def test_rows_of_panels() -> None:
    image = np.full((60, 80, 3), 128, dtype=np.uint8)
    truth = np.zeros((60, 80), dtype=np.uint8)
    truth[:, 40:], truth[:5] = 1, IGNORE
    two, four = map_row(image, None, truth, ("sky", "road")), map_row(image, truth, truth, ("sky", "road"))
    assert four.shape[1] > 1.9 * two.shape[1] and four.shape[0] == two.shape[0]
    for colour in distinct_colours(2):
        assert bool((two == colour).all(axis=-1).any())  # its swatch
    long = map_row(image, truth, truth, ("a very long name of a class without an end", "road"))
    assert long.shape[1] == four.shape[1]
