"""The drawn pictures of classes: the same each time, each class in them, and ready to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_class_sample import CLASSES, HEIGHT, PARTS, WIDTH, draw_yard, main

from samtune.tasks.semantic.splits import resolve_maps


def test_a_picture_depends_on_its_seed_alone() -> None:
    image, classes = draw_yard(np.random.default_rng(3))
    again, same = draw_yard(np.random.default_rng(3))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(classes, same)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == classes.dtype == np.uint8
    assert set(np.unique(classes)) == set(range(len(CLASSES)))  # of this one; a yard may have no house in view


def test_a_folder_is_ready_to_train_on(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--images", "4"])
    splits = resolve_maps(tmp_path, names=None, ignore=255)
    assert splits.table.names == CLASSES
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, PARTS["val"], PARTS["test"]]
