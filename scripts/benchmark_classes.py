"""Measures what a training step for several classes costs against one for a single mask.

    uv run python scripts/benchmark_classes.py --json classes.json

The same generated pictures, model, batch and method; what is timed is the step of `samtune finetune` (forward,
backward, AdamW) on a batch that is in memory, by the processor time of all threads. Each kind of job makes a step in
turn, so a machine that slows down slows all. `binary` is `polyp.yaml`, `classes` is `semantic.yaml`, `without
practice` the same with `loss.box_weight=0`, which keeps no answers to boxes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmark_methods import machine
from lightning_fabric import Fabric

from samtune.run.prepare import Job, prepare
from samtune.run.select import select_parameters
from samtune.run.settings import load_config
from samtune.run.train import attach_selection, objective_of
from samtune.run.updates import Updates

WARM_UP = 2
PARTS = {"train": 8, "val": 2, "test": 2}
KINDS = {"binary": ("polyp.yaml",), "classes": ("semantic.yaml",)}
KINDS["without practice"] = ("semantic.yaml", "loss.box_weight=0")


def main(argv: list[str] | None = None) -> None:
    """Prints the result as JSON, and writes it if asked to."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), classes=args.classes, size=args.size)
        rows = measure({kind: make_step(kind, Path(folder), args) for kind in KINDS}, args.repeats)
    text = json.dumps({"machine": machine("cpu", torch.get_num_threads()), "rows": rows}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="sam_lite", help="a Segment Anything")
    parser.add_argument("--classes", type=int, default=11, help="of the several")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    parser.add_argument("--batch", type=int, default=4, help="images of a step")
    parser.add_argument("--repeats", type=int, default=7, help="steps that count, of each kind")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser.parse_args(argv)


def write_pictures(folder: Path, *, classes: int, size: int) -> None:
    """Writes noise with maps of all classes in lumps, for the one task as numbers, for the other as the last class."""
    for order, (part, count) in enumerate(PARTS.items()):
        for number in range(count):
            rng = np.random.default_rng((order, number))
            lumps = cv2.GaussianBlur(rng.random((size, size, classes)), (0, 0), size / 16).argmax(axis=2)
            for kind, values in (("classes", lumps), ("binary", 255 * (lumps == classes - 1))):
                for sub in ("images", "masks"):
                    (folder / kind / part / sub).mkdir(parents=True, exist_ok=True)
                picture = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / kind / part / "images" / f"{part}{number}.png"), picture)
                cv2.imwrite(str(folder / kind / part / "masks" / f"{part}{number}.png"), values.astype(np.uint8))


def make_step(kind: str, folder: Path, args: argparse.Namespace) -> Callable[[], object]:
    """Prepares a job on a batch of its data, and returns its step."""
    config, *more = KINDS[kind]
    data = folder / ("binary" if kind == "binary" else "classes")
    settings = [f"data.dir={data}", f"model.name={args.model}", f"model.image_size={args.size}", "select={name: full}"]
    settings += [f"train.batch={args.batch}", "train.precision=fp32", "run.device=cpu", f"run.threads={args.threads}"]
    job: Job = prepare(load_config(config, [*settings, "track.mlflow=false", *more]))
    selection = select_parameters(job).selection
    trainable = attach_selection(job, selection)
    network = job.task.network(job.model, selection, base_hash=job.base_hash, autocast=None)
    network.train()
    fabric: Fabric = job.fabric
    updates = Updates(fabric, network, trainable, objective_of(job, trainable), job.config.train, 1000)
    batch: Any = next(iter(job.loaders.train)).to(job.model.device)
    return lambda: updates.make([batch])


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> list[dict[str, Any]]:
    """Makes the steps in turns; returns of each kind the median of its processor time, and its ratio to the first."""
    spent: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(WARM_UP + repeats):
        for kind, step in steps.items():
            began = time.process_time()
            step()
            if number >= WARM_UP:
                spent[kind].append(time.process_time() - began)
    medians = {kind: statistics.median(seconds) for kind, seconds in spent.items()}
    first = next(iter(medians.values()))
    return [{"kind": kind, "step_ms": 1000 * value, "ratio": value / first} for kind, value in medians.items()]


if __name__ == "__main__":
    main()
