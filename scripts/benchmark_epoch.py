"""Measures an epoch of a VTAB-like task against the floor: the same passes without any weight gradient.

    uv run python scripts/benchmark_epoch.py --json epoch.json

A generated task in the layout of VTAB-1k (JPEG files, 10 classes) is trained for two epochs by the config
`vtab/gps.yaml` with random weights, files and all: what is timed is what `samtune finetune` does between two
validations. The first epoch also imports and decodes, the second stands for the other 98. Every few steps one step of
the floor of `benchmark_methods.py` is timed in between, on a batch that is in memory already, so a machine that slows
down slows both. Loading is the time in which the step waits for its batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_methods import machine
from benchmark_reference import floor
from PIL import Image

from samtune.models.timm.model import build_classifier
from samtune.run.fit import Event, Watch, fit
from samtune.run.prepare import Job, prepare
from samtune.run.select import select_parameters
from samtune.run.settings import load_config
from samtune.run.train import attach_selection, objective_of

FLOOR_EVERY = 8  # steps
EPOCHS = 2
CLASSES = 10  # of the data set that the task stands for, SVHN
SIDES = (300, 400)  # pixels of the generated files


def main(argv: list[str] | None = None) -> None:
    """Prints the result as JSON, and writes it if asked to."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder) / "svhn", images=args.images)
        job = prepare(load_config("vtab/gps.yaml", [f"data.dir={folder}", *overrides(args)]))
        result = {"machine": machine(args.device, torch.get_num_threads()), **measure(job)}
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm")
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"], help="arithmetic of the passes")
    parser.add_argument("--device", default="cpu", help="where to compute")
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Returns the settings that make the config small enough to be one epoch of this task."""
    return [
        "data.name=vtab/svhn",
        f"model={{name: {args.model}, checkpoint: random}}",
        f"run.device={args.device}",
        f"train.precision={args.precision}",
        f"train.batch={args.batch}",
        f"train.epochs={EPOCHS}",
        "score.images=8",
        "score.batch=4",
    ]


def write_task(folder: Path, *, images: int) -> None:
    """Writes coarse noise as a task of VTAB-1k; val and test are as small as they may be."""
    rng = np.random.default_rng(0)
    counts = {"train800": images, "val200": CLASSES, "test": CLASSES}
    (folder / "images").mkdir(parents=True)
    for part, count in counts.items():
        lines = []
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            name = f"images/{part}_{number:06d}.jpg"
            coarse.resize((SIDES[1], SIDES[0]), Image.Resampling.BICUBIC).save(folder / name, quality=92)
            lines.append(f"{name} {number % CLASSES}\n")
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")


def measure(job: Job) -> dict[str, Any]:
    """Trains two epochs and returns for each its seconds, the floor's, and the share of loading."""
    selection = select_parameters(job).selection
    trainable = attach_selection(job, selection)
    floor_step = make_floor(job)
    loader = Timed(job.loaders.train)
    loaders = replace(job.loaders, train=loader)  # type: ignore[arg-type]
    steps: dict[int, list[float]] = {}
    floors: list[float] = []
    began = time.monotonic()

    def on_event(event: Event) -> None:
        nonlocal began
        steps.setdefault(event["epoch"], []).append(time.monotonic() - began)
        if event["step"] % FLOOR_EVERY == 1:
            floors.append(floor_step())
        began = time.monotonic()

    for _ in range(2):
        floor_step()  # to get warm
    fit(
        job.model,
        trainable,
        loaders,
        fabric=job.fabric,
        objective=objective_of(job, trainable),
        optimisation=job.config.train,
        watch=Watch(on_event),
    )
    floor_epoch = statistics.fmean(floors) * len(job.loaders.train.dataset) / job.config.train.images  # type: ignore[arg-type]
    epochs = [
        {
            "epoch_s": round(sum(times), 2),
            "ratio": round(sum(times) / floor_epoch, 3),
            "step_ms": spread(times),
            "loading_share": round(sum(waits) / sum(times), 4),
        }
        for times, waits in zip(steps.values(), loader.waits, strict=True)
    ]
    return {"floor_epoch_s": round(floor_epoch, 2), "floor_ms": spread(floors), "epochs": epochs}


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns the median, the smallest and the largest, in milliseconds."""
    values = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(1000 * value, 1) for name, value in values.items()}


def make_floor(job: Job) -> Callable[[], float]:
    """Returns a step of the same model without weight gradients, which returns its seconds."""
    model = build_classifier(job.model.name, classes=CLASSES, checkpoint="random").to(job.model.device)
    floor(model, None, None)
    loader: Any = job.loaders.train
    batch = next(iter(loader)).to(job.model.device)

    def step() -> float:
        start = time.monotonic()
        with job.fabric.autocast():
            logits = model.train()(batch)
        F.cross_entropy(logits.float(), batch.labels).backward()  # type: ignore[no-untyped-call]
        if job.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - start

    return step


class Timed:
    """A loader that notes how long each batch was waited for."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batch_sampler, self.dataset = loader.batch_sampler, loader.dataset
        self.waits: list[list[float]] = []  # by epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        self.waits.append([])
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waits[-1].append(time.monotonic() - start)
            yield batch


if __name__ == "__main__":
    main()
