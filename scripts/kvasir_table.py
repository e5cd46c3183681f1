"""Fills the README's table: sam_tiny on Kvasir-SEG, methods side by side at equal steps.

    uv run python scripts/kvasir_table.py --data DIR --out runs/kvasir_table
    uv run python scripts/kvasir_table.py --data DIR --out runs/kvasir_table --print     # only print what is there

DIR has `train/` and `val/` (EffiSegNet's 800 / 100 split). Everything is chosen on a fixed tenth of `train`: first
the learning rate of each method, from one small grid, one seed and a quarter of the steps; then the best epoch of
each run. `val` is what the table reports, and it is opened for that alone: before and after tuning. Each cell is
one `samtune finetune` in a process of its own; a finished cell is never run again, an unfinished one stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtune.data import find_pairs

GRID = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Method:
    """A row: a title and what it changes in the config."""

    title: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run: where it goes, what it changes, and the file of names that choices are made on."""

    name: str
    method: Method
    chosen_on: Path
    lr: float
    seed: int
    steps: int


METHODS = {
    "linear": Method("Linear (decoder only)", ("select={name: linear}",)),
    "gps_k1": Method("GPS, K = 1", ("select={name: gps, per_neuron: 1}",)),
    "gps_k5": Method("GPS, K = 5", ("select={name: gps, per_neuron: 5}",)),
    "full": Method("Full", ("select={name: full}",)),
    "random": Method("Full, from a random start", ("select={name: full}", "model.checkpoint=random")),
}


def main() -> None:
    """Runs the missing cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run, batch 8")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; each gets its share of the cores")
    parser.add_argument("--print", action="store_true", dest="only_print", help="run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.only_print:
        chosen_on = choice_names(args.data, args.out)
        quarter = args.steps // 4
        grid = [
            Cell(f"grid_{name}_{lr:g}", method, chosen_on, lr=lr, seed=0, steps=quarter)
            for name, method in METHODS.items()
            for lr in GRID
        ]
        run_cells(args, grid)
        rates = {name: best_rate(args.out, name) for name in METHODS}
        cells = [
            Cell(f"{name}_{seed}", method, chosen_on, lr=rates[name], seed=seed, steps=args.steps)
            for seed in SEEDS
            for name, method in METHODS.items()
        ]
        run_cells(args, cells)
    print(table(args.out, args.steps))


def choice_names(data: Path, out: Path) -> Path:
    """Writes the names of the fixed tenth of train that everything is chosen on; the same on every machine."""
    names = [pair.name for pair in find_pairs(data / "train")]
    chosen = np.random.default_rng(352).permutation(names)[: len(names) // 10]
    path = out / "chosen_on.txt"
    path.write_text("\n".join(sorted(chosen)) + "\n")
    return path


def run_cells(args: argparse.Namespace, cells: list[Cell]) -> None:
    """Runs cells in order, `--jobs` at once; after an error no further one starts."""
    failed = threading.Event()  # cancelling from here would come after a free worker took its next cell

    def run(cell: Cell) -> None:
        if failed.is_set():
            return
        try:
            run_cell(args, cell)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for _ in pool.map(run, cells):
                pass
        except BaseException:  # Ctrl-C arrives here
            failed.set()
            raise


def run_cell(args: argparse.Namespace, cell: Cell) -> None:
    """Runs one fine-tuning unless it is finished; writes `cell.json` beside the run."""
    name, folder = cell.name, args.out / cell.name
    if is_finished(folder, cell):
        return
    grid = name.startswith("grid_")
    overrides = [
        f"data.dir={args.data / 'train'}",
        f"data.val={cell.chosen_on.resolve()}",
        # the grid must not see the reported images: its test part is another cut of train, and not used
        *([] if grid else [f"data.test={(args.data / 'val').resolve()}"]),
        f"run.seed={cell.seed}",
        f"train.lr={cell.lr!r}",
        f"train.steps={cell.steps}",
        f"eval.overlays={0 if grid else 3}",
        "track.mlflow=false",
        *cell.method.overrides,
    ]
    command = [sys.executable, "-m", "samtune", "finetune", "--config", "kvasir_tiny.yaml", *overrides]
    print(f"{name}: {' '.join(overrides[-4:])}", flush=True)
    start = time.monotonic()
    with (args.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--run-dir", str(folder), "--overwrite"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name} failed; see {args.out / name}.log")
    metrics = json.loads((folder / "metrics.json").read_text())
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    result = {
        "lr": cell.lr,
        "seed": cell.seed,
        "steps": cell.steps,
        "choice_mDice": max(event["mDice"] for event in events if event["split"] == "val"),
        "seconds": round(time.monotonic() - start, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "trainable": metrics["trainable"]["total"],
        "delta_bytes": (folder / "delta.safetensors").stat().st_size,
    }
    if not grid:
        result |= {key: metrics[key] for key in ("mDice", "mIoU", "ci95", "before")}
    (folder / "cell.json").write_text(json.dumps(result, indent=1) + "\n")


def is_finished(folder: Path, cell: Cell) -> bool:
    """Tells whether a cell was run; one that was run with other settings is an error, not a result."""
    path = folder / "cell.json"
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    if (found["steps"], found["lr"]) != (cell.steps, cell.lr):
        raise SystemExit(
            f"{cell.name} was run with {found['steps']} steps and lr {found['lr']:g}, not {cell.steps} and "
            f"{cell.lr:g}. Choose another --out, or delete {folder}."
        )
    return True


def best_rate(out: Path, name: str) -> float:
    """Returns the grid's learning rate with the best Dice on the part that choices are made on."""
    cells = [json.loads((out / f"grid_{name}_{lr:g}" / "cell.json").read_text()) for lr in GRID]
    return float(max(cells, key=lambda cell: cell["choice_mDice"])["lr"])


def table(out: Path, steps: int) -> str:
    """Returns the table in Markdown; cells that were not run are empty."""
    lines = [
        f"| sam_tiny, 256 px, {steps} steps | mDice | mIoU | trained | learning rate | time | peak memory | delta |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = None
    for name, method in METHODS.items():
        paths = [out / f"{name}_{seed}" / "cell.json" for seed in SEEDS]
        cells = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not cells:
            lines.append(f"| {method.title} | | | | | | | |")
            continue
        if name != "random":
            before = before or cells[0]["before"]
        lines.append(
            f"| {method.title} | {spread(cells, 'mDice')} | {spread(cells, 'mIoU')} | {cells[0]['trainable']:,} | "
            f"{cells[0]['lr']:g} | {statistics.mean(c['seconds'] for c in cells) / 60:.1f} min | "
            f"{max(c['peak_mib'] for c in cells):,} MiB | {cells[0]['delta_bytes'] / 1e6:.2f} MB |"
        )
    if before:
        lines.insert(2, f"| Before (untuned) | {before['mDice']:.3f} | {before['mIoU']:.3f} | 0 | | | | |")
    return "\n".join(lines)


def spread(cells: list[dict[str, float]], key: str) -> str:
    """Returns mean and standard deviation over the seeds that were run."""
    values = [cell[key] for cell in cells]
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}" + ("" if len(values) == len(SEEDS) else f" ({len(values)} seed)")


if __name__ == "__main__":
    main()
