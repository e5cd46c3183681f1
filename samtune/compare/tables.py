"""The tables of a comparison that do not depend on the number of tasks, and how their numbers are written."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samtune.compare.read import Method

LINES = ("selected", "bias", "norm", "decoder", "head", "added", "total")  # of `trainable` in `metrics.json`
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "select_seconds": ("selecting", lambda value: f"{value:.1f} s"),
    "select_memory_mib": ("its memory", lambda value: f"{value:,.0f} MiB"),
    "seconds": ("training", lambda value: f"{value / 60:.1f} min"),
    "memory_mib": ("its memory", lambda value: f"{value:,} MiB"),
    "test_seconds": ("test", lambda value: f"{value:.1f} s"),
    "test_memory_mib": ("its memory", lambda value: f"{value:,.0f} MiB"),
    "saved_bytes": ("saved", lambda value: f"{value:,.0f} B"),
}

Grid = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A table: its columns, the first of which names the rows, and the texts of its rows."""

DEFINITION = {
    "mean": "Mean over the images, then mean ± sample standard deviation over the seeds: ",
    "ci95": "95 % percentile bootstrap interval over the images (1000 resamples, seed 0) of each image's mean over "
    "the seeds; it speaks about the choice of images, not about the luck of a run.",
    "difference": "Mean over the images of this row minus that row, each image averaged over its row's seeds first, "
    "with the 95 % interval of the paired bootstrap. An interval without 0 speaks for a real difference.",
    "selecting": "Time of the scoring pass, if the method needs one, and of the choice, also where runs "
    "share the scores of one pass. Its memory is the peak minus what was in use before.",
    "training": "Time with validations, without imports, scoring and evaluation, mean over the runs; its memory is "
    "the peak of a run minus what was in use before. Test: the same of the evaluation.",
}


def definitions(methods: Sequence[Method]) -> dict[str, str]:
    """Returns what the names in the tables mean, in the words of the runs' task."""
    words = next(run.words for method in methods for run in method.runs)
    return DEFINITION | {"mean": f"{DEFINITION['mean']}{words.explained}."} | _left(methods)


def _left(methods: Sequence[Method]) -> dict[str, str]:
    """Returns what runs the entries of sweeps that are empty or lack seeds; {} if all are there."""
    left: dict[Path, list[str]] = {}
    for method in methods:
        if method.sweep and any(len(row.runs) < row.wanted for row in method.rows.values()):
            left.setdefault(method.sweep, []).append(method.name)
    commands = [f"`samtune sweep --config {f}/sweep.yaml --out {f} 'rows=[{', '.join(r)}]'`" for f, r in left.items()]
    return {"not complete": f"The other runs: {'; '.join(commands)}."} if left else {}


def to_text(grids: Sequence[Grid], notes: Mapping[str, str]) -> str:
    """Returns tables in Markdown, and what the names in them mean."""
    return "\n\n".join([*map(markdown, grids), "\n".join(f"- {name}: {text}" for name, text in notes.items())])


def markdown(grid: Grid) -> str:
    """Returns a table in Markdown."""
    columns, rows = grid
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def counts_grid(methods: Sequence[Method]) -> Grid:
    """Returns what trains, by line, of each method's first run."""
    rows = []
    for method in methods:
        counts = method.runs[0].trainable if method.runs else {}
        rows.append([method.title, *(f"{counts[line]:,}" if line in counts else "" for line in LINES)])
    return ("trainable parameters", *LINES), rows


def apart_grids(methods: Sequence[Method]) -> list[Grid]:
    """Returns what each run says of images that the means leave out; no table where none leaves out any."""
    rows = [[f"{m.title}, seed {run.seed}", line] for m in methods for run in m.runs for line in run.report.apart()]
    return [(("left out of the means", "what was found"), rows)] if rows else []


def apart_json(method: Method) -> list[dict[str, Any]]:
    """Returns the same of one method: each run that leaves out images, its numbers, null if undefined, and words."""
    found = []
    for run in method.runs:
        if text := run.report.apart():
            numbers = {name: None if math.isnan(v) else v for name, v in run.report.left_out.items()}
            found.append({"run": str(run.folder), **numbers, "text": text})
    return found


def cost_grid(methods: Sequence[Method]) -> Grid:
    """Returns time and memory of each method; what is known of no run has no column."""
    costs = [cost_numbers(method) for method in methods]
    known = [name for name in COSTS if any(cost[name] is not None for cost in costs)]
    rows = [
        [method.title, chosen_text(method), *("" if cost[n] is None else COSTS[n][1](cost[n]) for n in known)]
        for method, cost in zip(methods, costs, strict=True)
    ]
    return ("cost", "chosen", *(COSTS[name][0] for name in known)), rows


def cost_numbers(method: Method) -> dict[str, float | None]:
    """Returns mean times and sizes, and largest memories, over the runs of a method; None if not known."""
    result: dict[str, float | None] = {}
    for name in COSTS:
        found = [run.saved_bytes if name == "saved_bytes" else run.facts.get(name) for run in method.runs]
        values = [value for value in found if value is not None]
        worst = max if "memory" in name else statistics.fmean
        result[name] = worst(values) if values else None
    return result


def chosen_text(method: Method) -> str:
    """Returns the chosen values: the learning rate first; "" where they differ from task to task."""
    facts = [run.facts for run in method.runs]
    values = [{"train.lr": fact.get("lr")} | fact.get("values", {}) for fact in facts]
    if not values or any(value != values[0] for value in values):
        return "" if not values else "by task"
    texts = [f"{v:g}" if k == "train.lr" else f"{k}={v}" for k, v in values[0].items() if v is not None]
    return ", ".join(texts) + (" (edge of the grid)" if any(fact.get("edge") for fact in facts) else "")
