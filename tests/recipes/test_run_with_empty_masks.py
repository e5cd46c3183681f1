"""A run on pictures of which some show no object: refused unless asked for, then counted apart everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_backbone
from helpers import write_data
from PIL import Image

from samtune.compare.compare import compare
from samtune.errors import DataError
from samtune.models.table import MODELS
from samtune.run.recipe import finetune
from samtune.run.settings import load_config
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.evaluate import evaluate_file

TINY = (
    "model.name=toy_net", "model.image_size=64", "run.device=cpu", "track.mlflow=false", "train.precision=fp32",
    "train.epochs=1", "train.steps=2", "train.batch=3", "score.batch=3", "eval.overlays=1",
)  # fmt: skip


def test_they_are_counted_apart_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, toy_backbone.NAME, toy_backbone.ENTRY)
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    for name in ("p00", "p06", "p09"):  # one of each part
        mask = data / "masks" / f"{name}.png"
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    given = (f"data.dir={data}", *TINY)
    with pytest.raises(DataError, match=r"3 of 12 masks show no object.*data\.empty=train"):
        finetune(load_config("polyp.yaml", given), run_dir=run)
    result = finetune(load_config("polyp.yaml", (*given, "data.empty=train")), run_dir=run, overwrite=True)
    report: Any = result.report
    content = json.loads((run / "metrics.json").read_text())
    rows = {row.name: row for row in report.rows}
    assert np.isnan(rows["p09"].dice)
    assert content["mDice"] == pytest.approx(np.mean([rows["p10"].dice, rows["p11"].dice]))
    assert content["metrics"]["empty_images"] == 1
    assert content["metrics"]["empty_false"] == float(rows["p09"].pred_px > 0)
    assert all(np.isnan(values[0]) and not np.isnan(values[1]) for values in report.trivial.values())
    (line,) = report.apart()
    assert report.to_table(result.before).notes[0] == line
    page = (run / "report.html").read_text()
    assert "Without an object" in page and line in page
    assert line in compare([run]).to_markdown()
    measured = evaluate_file(Evaluation(run / "merged.safetensors", data, device="cpu"))
    assert measured.left_out == report.left_out and measured.mDice == pytest.approx(report.mDice, abs=1e-6)
