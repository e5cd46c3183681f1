"""Every job that `docs/tables.md` names can be planned: its settings are valid and its selectors fit their models."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from samtune.sweep.plan import first_values, plan
from samtune.sweep.run import check_rows
from samtune.sweep.settings import load_sweep

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
MODELS = ("vit_base_patch16_224.augreg_in21k", "swin_base_patch4_window7_224.ms_in22k", "convnext_base.fb_in22k")
VALUES = {"DIR": "pictures", "NAME": "vtab/kitti", "LR": "1e-3", "K": "5", "N": "10000", "W": "1e-4", "L": "2"}
CONFIGS = {  # beginning of a row -> what its CONFIG, or its bare settings, stand for
    "GPS": "fgvc/gps.yaml data.dir=DIR data.name=fgvc/cub",
    "GRFT": "fgvc/grft.yaml data.dir=DIR data.name=fgvc/cub",
    "SPT": "vtab/spt.yaml data.dir=DIR data.name=vtab/kitti",
}


def jobs() -> list[str]:
    """Returns the commands `sweep`, `finetune` and `select` of the tables, with values for what they leave open."""
    found = []
    for line in TEXT.splitlines():
        first = line.lstrip("| ").split(" ")[0]
        config = CONFIGS.get(first, CONFIGS["GPS"])
        for code in re.findall(r"`([^`]+)`", line) if line.startswith("|") else ():
            if re.match(r"[a-z_]+(\.[a-z_]+)+=", code):  # a setting alone
                found.append(f"finetune --config {config} {code}")
            elif re.match(r"(sweep|finetune|select) --config ", code):
                found.append(code.replace("CONFIG", config).replace(" ...", " data.dir=DIR"))
    texts = [re.sub(r"\b[A-Z]+\b", lambda word: VALUES.get(word[0], word[0]), text) for text in found]
    return list(dict.fromkeys(text.replace("MODEL", model) for text in texts for model in MODELS))


def test_the_jobs_are_found() -> None:
    found = jobs()
    assert len(found) > 30
    assert len([text for text in found if text.startswith("sweep")]) >= 8
    assert not [text for text in found if re.search(r"=[A-Z]", text)], "what does this word stand for?"


@pytest.mark.parametrize("command", [text for text in jobs() if text.startswith("sweep")])
def test_a_sweep_can_be_planned(command: str) -> None:
    _, _, path, *rest = shlex.split(command)
    sweep = load_sweep(path, [*(text for text in rest if "=" in text), "seeds=[0]"])
    if sweep.tasks:  # `tests/unit/sweep` plans all of them; here the rows are the point
        sweep = sweep.model_copy(update={"tasks": dict([*sweep.tasks.items()][:1])})
    check_rows(plan(sweep, first_values(sweep)))


@pytest.mark.parametrize("path", sorted({text.split()[2] for text in jobs() if not text.startswith("sweep")}))
def test_jobs_of_a_config_can_be_planned(path: str, tmp_path: Path) -> None:
    """All jobs of one config, as rows of one sweep."""
    rows = {}
    for number, text in enumerate(jobs()):
        kind, _, config, *rest = shlex.split(text)
        if kind != "sweep" and config == path:
            rows[f"job_{number}"] = {"title": text, "overrides": [setting for setting in rest if "=" in setting]}
    (tmp_path / "jobs.yaml").write_text(json.dumps({"name": "jobs", "config": path, "cells": rows}))
    sweep = load_sweep(tmp_path / "jobs.yaml")
    cells = plan(sweep, first_values(sweep))
    assert len(cells) == len(rows)
    check_rows(cells)


def test_a_row_named_grft_pulls_to_the_start_or_says_that_it_does_not() -> None:
    """Without the pull it is "without norm" of GRFT's Tab. 5."""
    seen = []
    for path in (ROOT / "configs" / "sweeps").glob("*.yaml"):
        for name, row in load_sweep(path).cells.items():
            texts = dict(text.partition("=")[::2] for text in row.overrides)
            if "grft" in f"{texts.get('select')} {texts.get('recipe')}":
                start = json.loads(texts.get("tune.start", "{}"))
                pulls = texts.get("recipe") == '"grft"' or start.get("weight", 0) > 0
                assert pulls != ("without pull" in row.title), (path.name, name)
                seen.append(pulls)
    assert sorted(seen) == [False, False, True, True, True, True, True, True]
