"""kill -9 within an epoch of crops of large pictures: what is resumed ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from job import SETTINGS, both, die, in_child, samtune, saving_always, trap, truths
from object_maps import mosaic, write_object_map
from PIL import Image

from samtune.run.updates import Updates

TILED = (*SETTINGS, "train.epochs=2", "data.tiles={size: 64, overlap: 16}", "eval.prompts=1")
JOBS = {"instances.yaml": (), "polyp.yaml": ("data.prompt=mixed",)}


def large_pictures(folder: Path) -> Path:
    """Writes pictures of 120 x 144 pixels, four crops each, with the maps and the mask of their objects."""
    for part, count in {"train": 3, "val": 1, "test": 1}.items():
        (folder / part / "masks").mkdir(parents=True)
        for number in range(count):
            labels = mosaic(3, 3)
            write_object_map(folder / part, f"{part}{number}", labels)
            mask = (labels > 0).astype(np.uint8) * 255
            Image.fromarray(mask).save(folder / part / "masks" / f"{part}{number}.png")
    return folder


@pytest.mark.parametrize("config", JOBS)
def test_a_killed_run_on_crops_ends_with_equal_bits(config: str, tmp_path: Path) -> None:
    data = large_pictures(tmp_path / "data")

    def work(folder: str) -> Callable[[], None]:
        place = ("--run-dir", tmp_path / folder, "--resume", "auto")
        return samtune("finetune", "--config", config, *place, *TILED, *JOBS[config], f"data.dir={data}")

    whole = in_child(work("whole"), prepare=saving_always)
    assert whole.code == 0, whole.said
    killed = in_child(work("run"), prepare=both(saving_always, trap(Updates, "_update", 9, die)))
    assert killed.code == -9, killed.said  # in the third of six steps of the second epoch
    resumed = in_child(work("run"), prepare=saving_always)
    assert resumed.code == 0 and "goes on after step 8" in resumed.said, resumed.said
    assert truths(tmp_path / "run") == truths(tmp_path / "whole")
