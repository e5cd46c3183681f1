"""Measures what selecting costs, criterion by criterion: the scoring pass, if there is one, and the choice.

    uv run python scripts/benchmark_selecting.py --model vit_b16 --images 16 --batch 8 --json selecting.json

Weights, images and labels are random. Every row has a process of its own, one after the other, which loads the model,
passes one batch forwards to get warm, and then scores and selects, once for its memory and some times for its time, of
which the least counts: of the clock, and of all cores together, which other work on the machine changes less. Memory is
the peak over what the process has before: of the GPU, or resident (Linux only), with every tensor above 1 MiB mapped on
its own. A row of gradients has the task's loss on one view of each image; GPS's own loss for classifiers, contrastive
on two views, takes twice the images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from benchmark_methods import MODELS, build_task, machine, map_from

from samtune.base.machine import forget_peak, peak_mib
from samtune.scoring.score import score, score_inputs
from samtune.selection import SELECTORS, select
from samtune.selection.criteria import Criterion

CRITERIA: tuple[str, ...] = get_args(Criterion)
BASE = "gradient"
SMALL, LARGE = 2**20, 2**25  # bytes, of `map_from`


def main(argv: list[str] | None = None) -> None:
    """Prints a table, and writes JSON if asked to."""
    args = parse(argv)
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for criterion in args.criteria.split(","):
        with spawn.Pool(1) as pool:  # a process for each row, and none beside it
            rows.append(pool.apply(measure, (args, criterion)))
    result = {"machine": machine(args.device, args.threads), "images": args.images, "batch": args.batch, "rows": rows}
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="vit_b16", choices=sorted(MODELS))
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--images", type=int, default=16, help="scored images")
    parser.add_argument("--batch", type=int, default=8, help="images of a pass")
    parser.add_argument("--repeats", type=int, default=3, help="passes of which the quickest counts")
    parser.add_argument("--criteria", default=",".join(CRITERIA), help="of GPS, by commas")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, criterion: str) -> dict[str, Any]:
    """Scores and selects by one criterion, in this process, for its memory first and then for its time."""
    torch.set_num_threads(args.threads)
    task, device = build_task(args), torch.device(args.device)
    model = task.model.to(device).eval()
    batches = [task.batch] * (args.images // args.batch)  # what they show does not matter
    needs = SELECTORS["gps"].needs(criterion=criterion)

    def run() -> tuple[float, float, float]:
        began, worked, scores = time.monotonic(), time.process_time(), None
        if needs is not None and needs.of == "inputs":
            scores = score_inputs(model, batches)
        elif needs is not None:
            scores = score(model, batches, task.score_loss, per=needs.per, squares=needs.squares)
        scored = time.monotonic()
        select(model, scores, name="gps", criterion=criterion, biases=False, decoder=False)
        return scored - began, time.monotonic() - scored, time.process_time() - worked

    with torch.no_grad():
        model.features(task.batch.to(device))
    map_from(SMALL)
    before = forget_peak(device)
    run()
    memory = peak_mib(device) - before
    map_from(LARGE)
    scoring, choosing, cpu = min((run() for _ in range(args.repeats)), key=lambda took: took[0] + took[1])
    found = {"criterion": criterion, "scoring_s": scoring, "choosing_s": choosing, "cpu_s": cpu}
    return found | {"memory_mib": memory}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows in Markdown, with their shares of the gradient's where it is among them."""
    base = next((row for row in rows if row["criterion"] == BASE), None)
    columns = ("criterion", "scoring, s", "choosing, s", "/ gradient", "of all cores, s", "/ gradient")
    lines = ["| " + " | ".join([*columns, "memory, MiB", "/ gradient"]) + " |", "|---" * 8 + "|"]
    for row in rows:
        now, other = ([r["scoring_s"] + r["choosing_s"], r["cpu_s"], r["memory_mib"]] for r in (row, base or row))
        shares = ["" if base is None else f"{a / b:.2f}" for a, b in zip(now, other, strict=True)]
        cells = [row["criterion"], f"{row['scoring_s']:.1f}", f"{row['choosing_s']:.1f}", shares[0]]
        cells += [f"{row['cpu_s']:.1f}", shares[1], f"{row['memory_mib']:,.0f}", shares[2]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
