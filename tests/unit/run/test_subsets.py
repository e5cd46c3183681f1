"""GRFT's rule for the scoring images: of n random parts, the one with the smallest loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import write_data

from samtune.run import select
from samtune.run.recipe import select_only
from samtune.run.settings import load_config
from samtune.scoring.score import hash_batches
from samtune.selection import load_selection


def test_the_part_with_the_smallest_loss_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    losses: dict[str, float] = {}
    real = select.mean_loss

    def mean_loss(model: Any, part: Any, loss: Any) -> float:
        found = losses[hash_batches(part)] = real(model, part, loss)
        return found

    monkeypatch.setattr(select, "mean_loss", mean_loss)
    small = (
        "run.device=cpu",
        "model.checkpoint=random",
        "model.image_size=64",
        "track.mlflow=false",
        "data.cache=false",
    )
    data = write_data(tmp_path / "data")
    config = load_config(
        "polyp.yaml", [*small, f"data.dir={data}", "select={name: grft}", "score.subsets=3", "score.batch=2"]
    )
    folder = select_only(config, run_dir=tmp_path / "run")
    assert len(losses) == len(set(losses.values())) == 3
    scored = load_selection(folder / "selection.safetensors").provenance["images_hash"]
    assert scored == min(losses, key=lambda images: losses[images])
