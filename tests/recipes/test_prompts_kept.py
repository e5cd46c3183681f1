"""Runs whose prompts are measured before and after tuning, and one that trains with several kinds of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_data
from toy import ENTRY

from samtune.models.table import MODELS, build_model
from samtune.run.recipe import finetune
from samtune.run.settings import load_config
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.evaluate import MaskDescription, evaluate_file
from samtune.tasks.masks.predict import Predictor, other_prompt
from samtune.tasks.masks.service import MaskService
from samtune.tasks.probe import kept
from samtune.tasks.probe.answers import dice_by_prompt

TINY = (
    "model.name=toy", "model.image_size=64", "model.checkpoint=base.pth", "run.device=cpu", "track.mlflow=false",
    "train.precision=fp32", "train.epochs=2", "train.steps=4", "train.batch=4", "score.batch=3", "eval.overlays=1",
)  # fmt: skip


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setitem(MODELS, "toy", ENTRY)
    torch.save(build_model("toy").net.state_dict(), "base.pth")
    return (f"data.dir={write_data(Path.cwd() / 'data')}", *TINY)


def test_a_run_with_all_kinds_of_prompt(settings: tuple[str, ...]) -> None:
    run = Path("run")
    result = finetune(load_config("polyp.yaml", (*settings, "data.prompt=mixed")), run_dir=run)
    content = json.loads((run / "metrics.json").read_text())
    assert set(content["prompts"]) == {"none", "box", "point", "points3"}
    for places in content["prompts"].values():
        assert set(places) == {"val", "scenes"}
        assert all(0 <= one[key] <= 1 for one in places.values() for key in ("mDice", "before"))
    assert "32" not in content["definition"]["mDice"] and "generated scenes" in content["definition"]["prompts"]
    page = (run / "report.html").read_text()
    assert "Val, before" in page and "trained with none 50%, box 25%, point 25%" in page
    said = MaskDescription.read(run / "merged.safetensors")
    assert said.prompt == "none" and said.prompts == ("none", "box", "point")
    measured: Any = evaluate_file(Evaluation(run / "merged.safetensors", Path("data"), device="cpu"))
    assert measured.mDice == pytest.approx(result.report.values["mDice"], abs=1e-6)
    predictor = Predictor.from_file(run / "merged.safetensors", device="cpu")
    assert other_prompt(predictor, box=True, points=False) is None
    assert other_prompt(predictor, box=False, points=False) is None
    about = MaskService(predictor).about()
    assert about["prompt"] == "none" and about["prompts"] == ("none", "box", "point")
    again = finetune(load_config("polyp.yaml", (*settings, "data.prompt=mixed")), run_dir=Path("again"))
    assert again.report.values == result.report.values and again.report.kept == result.report.kept


def test_what_was_lost_is_said_where_it_is_seen(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = iter([{"val": {"box": 0.9}}, {"val": {"box": 0.2}}])
    monkeypatch.setattr("samtune.tasks.masks.task.measure_kept", lambda *_, **__: next(found))
    with caplog.at_level(logging.WARNING, "samtune"):
        finetune(load_config("polyp.yaml", settings), run_dir=Path("run"))
    line = (
        "prompts were lost in tuning: mDice fell by its box from 0.900 to 0.200 on val. data.prompt=mixed keeps more."
    )
    assert line in caplog.text
    assert line in json.loads(Path("run/metrics.json").read_text())["advice"]
    assert f"P{line[1:]}" in Path("run/report.html").read_text()


def test_nothing_is_tried_where_that_is_switched_off(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "dice_by_prompt", lambda *_: pytest.fail("tried"))
    finetune(load_config("polyp.yaml", (*settings, "eval.prompts=0", "eval.before=false")), run_dir=Path("run"))
    content = json.loads(Path("run/metrics.json").read_text())
    assert content["before"] is None and not Path("run/before").exists() and 0 <= content["mDice"] <= 1
    assert content["prompts"] is None and "prompts" not in content["definition"]


def test_at_most_as_many_pictures_as_asked(settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()
    real = dice_by_prompt

    def noted(answer: Any, batch: Any, most: int) -> Any:
        names.extend(batch.names)
        return real(answer, batch, most)

    monkeypatch.setattr(kept, "dice_by_prompt", noted)
    finetune(load_config("polyp.yaml", (*settings, "eval.prompts=1")), run_dir=Path("run"))
    assert len(names) == 4 and names[1::2] == ["scene0"] * 2 and names[0] == names[2]
