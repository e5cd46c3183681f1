"""Run folders as a fine-tuning leaves them, written without one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samtune.base.children import Children
from samtune.tasks.classes.report import CLASS_DEFINITIONS, ClassReport, ClassRow
from samtune.tasks.masks.report import Report, Row

COUNTS = {"selected": 7, "bias": 5, "norm": 0, "decoder": 1000, "head": 0, "added": 0, "total": 1012, "percent": 1.0}
NAMES = ("a", "b", "c", "d")


def write_run(
    folder: Path,
    dice: Sequence[float],
    *,
    names: Sequence[str] = NAMES,
    lr: float = 1e-3,
    before: float = 0.2,
    **cell: object,
) -> Path:
    """Writes a run folder with one Dice per image (IoU is half of it), `before` tuning; `cell`: a cell of a sweep."""
    size = {name: 0 if math.isnan(value) else 9 for name, value in zip(names, dice, strict=True)}  # NaN: both empty
    rows = [Row(n, d, d / 2, 1.0, 1.0, size[n], size[n]) for n, d in zip(names, dice, strict=True)]
    untuned = [Row(n, before, before / 2, 1.0, 1.0, truth_px=9, pred_px=9) for n in names]
    definition = {"mDice": "Mean Dice."}
    report = Report(tuple(rows), "test", definition)
    report.save(folder, before=Report(tuple(untuned), "test", definition), trainable=COUNTS)
    _write_rest(folder, lr, cell)
    return folder


def write_class_run(
    folder: Path, right: int, *, images: int = 10, percent: float = 0.5, lr: float = 1e-3, **cell: object
) -> Path:
    """Writes a run folder of a classification of six classes with `right` of its images right."""
    rows = [
        ClassRow(f"{i}.png", i % 6, i % 6 if i < right else (i + 1) % 6, int(i >= right), 0.5, 0.5)
        for i in range(images)
    ]
    report = ClassReport(tuple(rows), "test", tuple("abcdef"), dict(CLASS_DEFINITIONS))
    report.save(folder, trainable=COUNTS | {"percent": percent})
    _write_rest(folder, lr, cell)
    return folder


def _write_rest(folder: Path, lr: float, cell: dict[str, object]) -> None:
    (folder / "delta.safetensors").write_bytes(b"x" * 1234)
    (folder / "config.yaml").write_text(f"run: {{seed: 0}}\ntrain: {{lr: {lr}}}\n")
    if cell:
        facts = {"lr": lr, "values": {"train.lr": lr}, "edge": False, "seed": 0, "steps": 9, "seconds": 60.0}
        facts |= {"memory_mib": 500, "test_seconds": None, "test_memory_mib": None, "settings": {}}
        (folder / "cell.json").write_text(json.dumps(facts | {"overrides": []} | cell))


def write_sweep(
    folder: Path,
    titles: dict[str, str],
    *,
    seeds: Sequence[int] = (0, 1),
    tasks: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Writes the `sweep.yaml` of a sweep folder without cells."""
    folder.mkdir(parents=True)
    cells = {name: {"title": title, "only": None} for name, title in titles.items()}
    content = {"name": "demo", "tasks": tasks, "cells": cells, "seeds": list(seeds)}
    (folder / "sweep.yaml").write_text(json.dumps(content))
    return folder


class FakeChildren(Children):
    """Plays the processes of a sweep: writes what `samtune finetune` would.

    Args:
        score: mDice or top1 of a run, by its overrides.
        code: exit code of a run, by the path of its folder below that of the sweep.
    """

    def __init__(self, score: Callable[[dict[str, str]], float], code: Callable[[str], int] = lambda name: 0) -> None:
        super().__init__()
        self.score, self.code = score, code
        self.started: list[str] = []
        self.given: dict[str, dict[str, str]] = {}

    def run(self, command: list[str], log: Path, threads: int) -> int:
        folder = Path(command[command.index("--run-dir") + 1])
        parts = folder.parts
        name = "/".join(parts[max(i for i, part in enumerate(parts) if part in ("grid", "cells")) :])
        given = dict(text.partition("=")[::2] for text in command if "=" in text)
        self.started.append(name)
        self.given[name] = given
        log.write_text(" ".join(command))
        if self.code(name):
            log.write_text("preparing\nerror: the disk is full\n")
            return self.code(name)
        value = self.score(given)
        metric = "top1" if "data.name" in given else "mDice"
        if metric == "top1":
            write_class_run(folder, round(10 * value))
        else:
            write_run(folder, [value] * len(NAMES))
        (folder / "merged.safetensors").write_bytes(b"merged")
        events: list[dict[str, Any]] = [
            {"split": "select", "step": 0, "seconds": 0.5, "memory_mib": 12.0},
            {"split": "val", "step": 1, metric: value},
            {"split": "val", "step": 2, metric: value / 2},
            {"split": "fit", "step": 2, "seconds": 12.34, "memory_mib": 321.4},
            {"split": "test", "step": 2, metric: 0.9, "seconds": 1.5, "memory_mib": 99.0},
        ]
        if given.get("data.retrain") == "true":
            events = [events[0], *events[3:]]
        (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return 0
