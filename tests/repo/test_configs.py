"""Every config that is shipped fits the schema, says at its top how to run it, and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from class_maps import write_maps
from class_trees import write_class_folders, write_fgvc, write_vtab
from helpers import write_data
from object_maps import write_objects
from toy_hf import CONFIGS as TOYS
from toy_hf import toy_hf

from samtune.config.sections import Config
from samtune.run.settings import load_config
from samtune.tasks.classes.config import ClassificationConfig

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "sweeps")
SMALL = {
    "segmentation": ("model.checkpoint=random", "model.name=sam_tiny", "model.image_size=64"),
    "semantic": ("model.checkpoint=random", "model.name=sam_tiny", "model.image_size=64"),
    "instances": ("model.checkpoint=random", "model.name=sam_tiny", "model.image_size=64"),
    "classification": (
        "model={name: vit_tiny_patch16_224, checkpoint: random, image_size: 32, "
        "options: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}",
        "data.workers=0",
        "train.batch=8",
    ),
}


def write_data_for(config: Config, folder: Path) -> Path:
    """Writes tiny data in the layout that a config reads."""
    if config.task in ("semantic", "instances"):
        return (write_maps if config.task == "semantic" else write_objects)(folder)
    if not isinstance(config, ClassificationConfig):
        return write_data(folder)
    benchmark, _, name = (config.data.name or "").partition("/")
    if benchmark == "vtab":
        return write_vtab(folder, name)
    if benchmark == "fgvc":
        return write_fgvc(folder, name)
    return write_class_folders(folder)


def small_model(config: Config, folder: Path) -> tuple[str, ...]:
    """Returns overrides for a small model of the config's kind; of transformers' families a folder of their own."""
    if config.model.name not in TOYS:
        return SMALL[config.task]
    toy_hf(config.model.name).save_stock(folder)
    return f"model.checkpoint={folder}", "model.image_size=64"


def test_there_are_configs() -> None:
    names = {path.name for path in CONFIGS}
    assert {"polyp.yaml", "kvasir_tiny.yaml", "kvasir_vit_b.yaml", "polyp_gps_published.yaml", "folders.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_fits_the_schema(path: Path) -> None:
    config = load_config(path)
    assert load_config(path, [f"data.dir={config.data.dir}"]) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_its_header_has_the_command(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"--config {path.relative_to(FOLDER)}" in line for line in header)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_runs_two_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.run.recipe import finetune

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    data = write_data_for(config, tmp_path / "data")
    short = ("run.device=cpu", "train.steps=2", "track.mlflow=false", f"data.dir={data}")
    result = finetune(load_config(path, [*small_model(config, tmp_path / "base"), *short]))
    assert result.fit.steps == 2
    assert result.run_dir.parent == Path("runs") / config.run.name
    assert (result.run_dir / "merged.safetensors").is_file()
    assert (result.run_dir / "report.html").is_file()
