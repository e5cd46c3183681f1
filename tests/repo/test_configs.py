"""Every config that is shipped fits the schema, and says at its top what it is for and how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from samtune.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml"))


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
