"""The table of `docs/models.md`, model x task x method: each cell is a run, merged, exported and served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import transformers
from class_maps import write_maps
from helpers import write_data
from object_maps import write_objects
from toy import ENTRY
from toy_hf import CONFIGS, toy_hf

from samtune.errors import CheckpointError, ConfigError
from samtune.files.export.folder import export_folder
from samtune.files.export.pth import export_pth
from samtune.models.hf.families import FAMILIES
from samtune.models.table import MODELS
from samtune.run.recipe import finetune
from samtune.run.settings import load_config
from samtune.selection import SELECTORS
from samtune.tasks.table import task_of_file

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
OWN = {"sam_lite": "toy_lite", "sam_vit_b": "toy"}
"""Families of samtune's own to the small models of their kind that stand for them."""
CONFIG = {"segmentation": "polyp.yaml", "semantic": "semantic.yaml", "instances": "instances.yaml"}
METHODS = [name for name in SELECTORS if name != "mlp"]  # which is a head of classifiers
SETTINGS = (
    "run.device=cpu", "train.steps=1", "train.batch=2", "train.precision=fp32", "score.images=2", "score.batch=2",
    "eval.overlays=0", "track.mlflow=false",
)  # fmt: skip
PARTS = {"train": 2, "val": 1, "test": 1}


class Row(NamedTuple):
    """A model and a task."""

    model: str
    task: str


ROWS = [Row(model, task) for model in (*CONFIGS, *OWN) for task in CONFIG]
SAMPLE = [(ROWS[8 * place % len(ROWS)], method) for place, method in enumerate(METHODS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data for each task, and a folder of transformers for each family."""
    root = tmp_path_factory.mktemp("table")
    write_data(root / "segmentation", **PARTS)
    write_maps(root / "semantic", PARTS)
    write_objects(root / "instances", PARTS)
    for family in CONFIGS:
        toy_hf(family).save_stock(root / family)
    with pytest.MonkeyPatch.context() as patch:
        for name in OWN.values():
            patch.setitem(MODELS, name, ENTRY)
        yield root


def cell(row: Row, method: str, place: Path, out: Path) -> tuple[str, str]:
    """Runs a method, and returns its cell and how its merged file is exported; both are "" where it is not defined.

    "M": merged, audited by the run, exported as the row says, and served. "B": the same, as a bundle.
    """
    chosen = f"select={{name: {method}, budget: 2%}}" if method == "spt" else f"select={{name: {method}}}"
    own = (f"model.name={OWN.get(row.model, row.model)}", f"data.dir={place / row.task}", chosen)
    base = () if row.model in OWN else (f"model.checkpoint={place / row.model}",)
    try:
        result = finetune(load_config(CONFIG[row.task], [*SETTINGS, *own, *base]), run_dir=out / method)
    except ConfigError:
        return "", ""
    merged = result.run_dir / "merged.safetensors"
    file = merged if merged.is_file() else result.run_dir / "bundle.safetensors"
    service = task_of_file(file).service.from_file(file, device="cpu")
    picture = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    assert len(service.answer(picture, {}, []).content) > 50
    assert len(service.answer(picture, {"box": [[4.0, 4.0, 30.0, 30.0]]}, []).content) > 50
    exported = how_exported(row.model, file, result.run_dir)
    if file != merged:
        assert exported == "nowhere"
        return "B", ""
    return "M", exported


def how_exported(model: str, file: Path, folder: Path) -> str:
    """Exports a file by each format, and says which took it."""
    formats = []
    for name, export in (("transformers", export_folder), ("pth", export_pth)):
        try:
            export(file, folder / f"exported_{name}")
        except CheckpointError:
            continue
        formats.append(name)
    if model in OWN:
        return ", ".join(formats) or "nowhere"
    if not formats:
        assert not (folder / "transformers").exists()
        return "nowhere"
    loader: Any = getattr(transformers, f"{FAMILIES[model].prefix}Model")
    for written in (folder / "transformers", folder / "exported_transformers"):
        _, account = loader.from_pretrained(written, output_loading_info=True)
        assert not account["missing_keys"] and not account["unexpected_keys"]
    assert (folder / "transformers" / "README.md").exists() == (formats == ["transformers"])
    return ", ".join(formats) if len(formats) == 2 else "transformers, for prompts only"


def line(row: Row, exported: str, cells: list[str]) -> str:
    """Returns a row in Markdown."""
    return f"| {' | '.join([f'`{row.model}`', row.task, exported, *cells])} |"


def documented() -> dict[Row, list[str]]:
    """Returns what the document says: how the row is exported, then a cell for each method."""
    lines = [[part.strip() for part in text.strip("|").split("|")] for text in DOCS.read_text().splitlines()]
    head = next(place for place, parts in enumerate(lines) if parts[:3] == ["model", "task", "exported to"])
    assert [part.strip("`") for part in lines[head][3:]] == METHODS
    rows = lines[head + 2 : head + 2 + len(ROWS)]
    return {Row(parts[0].strip("`"), parts[1]): parts[2:] for parts in rows}


def test_the_table_has_every_model_task_and_method() -> None:
    assert list(documented()) == ROWS
    assert {row.model for row, _ in SAMPLE} == {row.model for row in ROWS}
    assert {row.task for row, _ in SAMPLE} == set(CONFIG) and [method for _, method in SAMPLE] == METHODS


@pytest.mark.parametrize(("row", "method"), SAMPLE, ids=[f"{r.model}-{r.task}-{m}" for r, m in SAMPLE])
def test_a_cell_of_each_method_is_true(row: Row, method: str, place: Path, tmp_path: Path) -> None:
    said = documented()[row]
    found, exported = cell(row, method, place, tmp_path)
    assert found == said[1 + METHODS.index(method)]
    assert not exported or exported == said[0]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_a_row_is_true(row: Row, place: Path, tmp_path: Path) -> None:
    found = [cell(row, method, place, tmp_path) for method in METHODS]
    ways = {exported for _, exported in found} - {""}
    assert len(ways) <= 1
    cells = [letter for letter, _ in found]
    assert documented().get(row) == [*ways, *cells], f"\n{line(row, ''.join(ways), cells)}"
