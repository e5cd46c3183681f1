"""Every config that is shipped fits the schema, says at its top how to run it, and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_data

from samtune.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    names = {path.name for path in CONFIGS}
    assert {"polyp.yaml", "kvasir_tiny.yaml", "kvasir_vit_b.yaml", "polyp_gps_published.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_fits_the_schema(path: Path) -> None:
    config = load_config(path)
    assert load_config(path, [f"data.dir={config.data.dir}"]) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_its_header_has_the_command(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"--config {path.name}" in line for line in header)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_runs_two_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.recipe import finetune

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = ("model.checkpoint=random", "model.name=sam_tiny", "model.image_size=64", "run.device=cpu")
    short = ("train.steps=2", "track.mlflow=false", f"data.dir={write_data(tmp_path / 'data')}")
    result = finetune(load_config(path, [*small, *short]))
    assert result.fit.steps == 2
    assert result.run_dir.parent == Path("runs") / path.stem
    assert (result.run_dir / "merged.safetensors").is_file()
    assert (result.run_dir / "report.html").is_file()
