"""Tiny data folders, and a cache that no other test sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes `names` as noise images with one rectangle each, of 40 x 30 pixels."""

    def make(names: list[str], folder: str = "data", *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
        root = tmp_path / folder
        for sub in ("images", "masks"):
            (root / sub).mkdir(parents=True, exist_ok=True)
        width, height = size
        for i, name in enumerate(names):
            rng = np.random.default_rng((seed, i))
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # coarse, so that difference hashes differ
            Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(root / "images" / f"{name}.png")
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[5 : 5 + height // 3, 4 + i % 5 : 4 + i % 5 + width // 3] = 255
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        return root

    return make
