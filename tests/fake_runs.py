"""Run folders as a fine-tuning leaves them, written without one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samtune.metrics.table import Report, Row
from samtune.sweep import Children

COUNTS = {"selected": 7, "bias": 5, "norm": 0, "decoder": 1000, "head": 0, "added": 0, "total": 1012, "percent": 1.0}
NAMES = ("a", "b", "c", "d")


def write_run(
    folder: Path, dice: Sequence[float], *, names: Sequence[str] = NAMES, lr: float = 1e-3, **cell: object
) -> Path:
    """Writes a run folder with one Dice per image (IoU is half of it); `cell` makes it a cell of a sweep."""
    size = {name: 0 if math.isnan(value) else 9 for name, value in zip(names, dice, strict=True)}  # NaN: both empty
    rows = [Row(n, d, d / 2, 1.0, 1.0, size[n], size[n]) for n, d in zip(names, dice, strict=True)]
    before = [Row(n, 0.2, 0.1, 1.0, 1.0, truth_px=9, pred_px=9) for n in names]
    definition = {"mDice": "Mean Dice."}
    report = Report(tuple(rows), "test", definition)
    report.save(folder, before=Report(tuple(before), "test", definition), trainable=COUNTS)
    (folder / "delta.safetensors").write_bytes(b"x" * 1234)
    (folder / "config.yaml").write_text(f"run: {{seed: 0}}\ntrain: {{lr: {lr}}}\n")
    if cell:
        facts = {"lr": lr, "value": lr, "edge": False, "seed": 0, "steps": 9, "seconds": 60.0, "memory_mib": 500}
        (folder / "cell.json").write_text(json.dumps(facts | {"overrides": []} | cell))
    return folder


def write_sweep(folder: Path, titles: dict[str, str], *, seeds: Sequence[int] = (0, 1)) -> Path:
    """Writes the `sweep.yaml` of a sweep folder without cells."""
    folder.mkdir(parents=True)
    cells = {name: {"title": title} for name, title in titles.items()}
    (folder / "sweep.yaml").write_text(json.dumps({"name": "demo", "cells": cells, "seeds": list(seeds)}))
    return folder


class FakeChildren(Children):
    """Plays the processes of a sweep: writes what `samtune finetune` would.

    Args:
        dice: of a run, by its overrides.
        code: exit code of a run, by the name of its folder.
    """

    def __init__(self, dice: Callable[[dict[str, str]], float], code: Callable[[str], int] = lambda name: 0) -> None:
        super().__init__()
        self.dice, self.code = dice, code
        self.started: list[str] = []

    def run(self, command: list[str], log: Path, threads: int) -> int:
        folder = Path(command[command.index("--run-dir") + 1])
        name = f"{folder.parent.name}/{folder.name}"
        self.started.append(name)
        log.write_text(" ".join(command))
        if self.code(name):
            return self.code(name)
        given = dict(text.partition("=")[::2] for text in command if "=" in text)
        value = self.dice(given)
        write_run(folder, [value] * len(NAMES))
        (folder / "merged.safetensors").write_bytes(b"merged")
        events: list[dict[str, Any]] = [
            {"split": "val", "step": 1, "mDice": value},
            {"split": "val", "step": 2, "mDice": value / 2},
            {"split": "fit", "step": 2, "seconds": 12.34, "memory_mib": 321.4},
            {"split": "test", "step": 2, "mDice": 0.9},
        ]
        (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return 0
