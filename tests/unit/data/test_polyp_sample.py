"""The bundled sample is what data/README.md says, and its generator still draws it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from samtune.data.pair_splits import verify_pairs
from samtune.data.pictures import read_image
from samtune.tasks.binary import read_mask
from samtune.tasks.masks.splits import BINARY, resolve_split

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data" / "polyp_sample"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_polyp_sample", ROOT / "scripts" / "make_polyp_sample.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_parts_are_clean_disjoint_and_small() -> None:
    splits = resolve_split(SAMPLE)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 30, 60)
    assert splits.notes == []  # no near-duplicates across parts
    report = verify_pairs([*splits.train, *splits.val, *splits.test], BINARY)
    assert report.errors == () and report.warnings == ()
    assert sum(f.stat().st_size for f in SAMPLE.rglob("*") if f.is_file()) < 6_000_000


def test_every_picture_has_a_polyp_of_the_stated_size() -> None:
    parts = [read_mask(path).mean() for path in sorted(SAMPLE.glob("*/masks/*.png"))]
    assert len(parts) == 180 and min(parts) >= 0.03 and max(parts) <= 0.36


@pytest.mark.parametrize(("part", "index"), [("train", 0), ("val", 90), ("test", 179)])
def test_generator_is_frozen(generator: ModuleType, part: str, index: int) -> None:
    image, mask = generator.draw_scene(index)
    stored = read_image(SAMPLE / part / "images" / f"scene_{index:03d}.jpg").astype(int)
    assert np.abs(image - stored).mean() < 4  # JPEG
    # OpenCV's rounding may differ by a pixel along the outline between versions.
    assert (mask != read_mask(SAMPLE / part / "masks" / f"scene_{index:03d}.png")).mean() < 1e-3


def test_generator_writes_the_layout(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PARTS", {"train": 2, "val": 1})
    generator.main(["--out", str(tmp_path)])
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert written == [
        "train/images/scene_000.jpg", "train/images/scene_001.jpg", "train/masks/scene_000.png",
        "train/masks/scene_001.png", "val/images/scene_002.jpg", "val/masks/scene_002.png",
    ]  # fmt: skip
