"""Measures what a training step of each method costs, side by side, with random weights, images and labels.

    uv run python scripts/benchmark_methods.py --model vit_b16 --batch 16 --json costs.json --picture costs.png

Every method has a process of its own that stays alive, so no method finds memory that another one left behind, and
steps are timed in turns, so a machine that slows down slows all methods. A turn is one step to get warm again and one
step that counts. A step is forward, backward and AdamW; the head or the mask decoder trains too.

`floor` is the same model without any weight gradient: one backward pass down to the output of the first convolution.
`masked_dense` is GPS the way it was released. Memory is the peak over the loaded plain fp32 model during the first two
steps: of the GPU, or of the process (Linux only); masks, optimizer states and indices count. U is the mean share of a
linear layer's input columns in which any entry is selected. Trainable is what the optimizer holds. Bytes are those of
a file of it; single entries come with their packed places.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_reference import Tuned, attached, floor, masked_dense, peft_lora, peft_lora_qkv, peft_shira
from torch import Tensor, nn

from samtune.base.tensors import save_tensors
from samtune.errors import ConfigError, SamtuneError, unknown_name
from samtune.models.backbone import Backbone
from samtune.models.sam.model import upsample_logits
from samtune.models.table import build_model
from samtune.models.timm.model import build_classifier
from samtune.models.weights import RANDOM
from samtune.run.updates import updates_in_one_call
from samtune.scoring.score import score
from samtune.selection import Selection, load_selection, save_selection, select
from samtune.selection.selection import pack_indices
from samtune.tasks.classes.losses import head_cross_entropy
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import task_loss
from samtune.types import AnyBatch, Batch, LabelledBatch

M_MMAP_THRESHOLD = -3  # of mallopt, in glibc's malloc.h
WARM_UP = 2
SCORED_IMAGES = 4
CLASSES = 100
# Imported before the processes part: an import in a process would count as memory of its method.
PRELOAD = ["torch._dynamo", "samtune.scoring.score", "samtune.tuning"]


@dataclass(frozen=True)
class Method:
    """A row: who trains, and what `samtune.selection.select` is asked for; None where nothing is selected.

    Attributes:
        base: how frozen weights are stored, whatever --base says; None for that.
    """

    attach: Callable[..., Tuned]
    select: Mapping[str, Any] | None = None
    base: torch.dtype | None = None


@dataclass(frozen=True)
class Task:
    """A plain model, something to train it on, and the two losses: of the logits, and of the scoring pass."""

    model: Backbone
    batch: Any
    loss: Callable[[Tensor], Tensor]
    score_loss: Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Model:
    """A model of the command line.

    Attributes:
        build: makes its task from size and batch.
        size: its own side of the images, in pixels.
        libraries: what its task imports late.
        small: a small model of its kind.
    """

    build: Callable[[int, int], Task]
    size: int
    libraries: tuple[str, ...]
    small: str


METHODS: dict[str, Method] = {
    "floor": Method(floor),
    "full": Method(attached, {"name": "full"}),
    "masked_dense": Method(masked_dense, {"name": "gps", "per_neuron": 1}),
    "peft_lora": Method(peft_lora),
    "peft_lora_qkv": Method(peft_lora_qkv),
    "peft_shira": Method(peft_shira),
    "gps": Method(attached, {"name": "gps", "per_neuron": 1}),
    "gps_bf16": Method(attached, {"name": "gps", "per_neuron": 1}, torch.bfloat16),
    "gps_int8": Method(attached, {"name": "gps", "per_neuron": 1}, torch.int8),
    "gps_k5": Method(attached, {"name": "gps", "per_neuron": 5}),
    "gps_k10": Method(attached, {"name": "gps", "per_neuron": 10}),
    "grft_rows": Method(attached, {"name": "grft", "pattern": "rows", "k": 1}),
    "grft_columns": Method(attached, {"name": "grft", "pattern": "columns", "k": 1}),
    "spt": Method(attached, {"name": "spt", "per": "batch"}),
    "lora": Method(attached, {"name": "lora", "rank": 8}),
    "adapter": Method(attached, {"name": "adapter"}),
    "adaptformer": Method(attached, {"name": "adaptformer"}),
    "ssf": Method(attached, {"name": "ssf"}),
    "vpt_shallow": Method(attached, {"name": "vpt_shallow"}),
    "vpt_deep": Method(attached, {"name": "vpt_deep"}),
    "bias": Method(attached, {"name": "bias"}),
    "linear": Method(attached, {"name": "linear"}),
    "partial": Method(attached, {"name": "partial"}),
}


def main(argv: list[str] | None = None) -> None:
    """Measures the methods, prints the table, and writes what was asked for."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        facts = select_all(args, Path(folder))
        give_back(torch.device(args.device))
        rows = measure(args, facts)
    add_ratios(rows)
    result = {"machine": machine(args.device, args.threads), "settings": settings(args), "rows": rows}
    text = markdown(result)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.picture:
        save_picture(result, args.picture)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; `args.methods` becomes a list of names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the model's own)")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="bf16 means autocast")
    parser.add_argument("--base", choices=("fp32", "bf16"), default="fp32", help="how frozen weights are stored")
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each method")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="time against memory, PNG")
    args = parser.parse_args(argv)
    if args.base == "bf16" and args.precision == "fp32":
        parser.error("--base bf16 needs --precision bf16: an fp32 step can't use bf16 weights.")
    args.size = args.size or MODELS[args.model].size
    args.methods = args.methods.split(",")
    for name in args.methods:
        if name not in METHODS:
            parser.error(unknown_name("method", name, METHODS))
    return args


def build_task(args: argparse.Namespace, batch: int | None = None) -> Task:
    """Builds the model, images and targets of the command line; the same weights on every call."""
    torch.manual_seed(0)
    return MODELS[args.model].build(args.size, batch or args.batch)


def classifier_task(name: str, size: int, batch: int) -> Task:
    """A classifier of 100 classes."""
    model = build_classifier(name, classes=CLASSES, checkpoint=RANDOM, image_size=size)
    labels = torch.randint(0, CLASSES, (batch,))
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    data = LabelledBatch(images, labels, tuple(map(str, range(batch))))
    return Task(
        model, data, lambda logits: F.cross_entropy(logits.float(), data.labels.to(logits.device)), head_cross_entropy
    )


def sam_task(name: str, size: int, batch: int) -> Task:
    """A Segment Anything without prompts; a target covers the middle of its picture."""
    model = build_model(name, checkpoint=RANDOM, image_size=size)
    masks = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    masks[:, :, size // 4 : -size // 4, size // 4 : -size // 4] = True
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    data = Batch(images, masks, ((size, size),) * batch, tuple(map(str, range(batch))))
    return Task(
        model, data, lambda logits: dice_bce(upsample_logits(logits, size), data.to(logits.device)), task_loss(dice_bce)
    )


LOSS = "monai.losses.dice"
SAM_2 = "transformers.models.sam2.modeling_sam2"
MODELS: dict[str, Model] = {
    "vit_b16": Model(partial(classifier_task, "vit_base_patch16_224.augreg_in21k"), 224, ("timm",), "vit_tiny"),
    "vit_tiny": Model(partial(classifier_task, "vit_tiny_patch16_224"), 224, ("timm",), "vit_tiny"),
    "sam_vit_b": Model(partial(sam_task, "sam_vit_b"), 1024, (LOSS,), "sam_tiny"),
    "sam_lite": Model(partial(sam_task, "sam_lite"), 256, (LOSS,), "sam_lite"),
    "sam_tiny": Model(partial(sam_task, "sam_tiny"), 256, (LOSS,), "sam_tiny"),
    "sam2": Model(partial(sam_task, "sam2"), 1024, (LOSS, SAM_2), "sam2"),  # of transformers, tiny by default
}


def select_all(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Scores once and writes a selection file for every method that has one.

    Returns:
        For each method, what is known before it runs: `path` of its selection, `union` (U) and `bytes_selected`
        where single entries train, and `reason` where it is not defined for the model.
    """
    facts: dict[str, dict[str, Any]] = {name: {} for name in args.methods}
    wanted = {name: options for name in facts if (options := METHODS[name].select) is not None}
    if not wanted:
        return facts
    task = build_task(args, batch=min(args.batch, SCORED_IMAGES))
    model = task.model.to(args.device)
    scores = score(model, [task.batch], task.score_loss, squares="spt" in wanted)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.net.named_parameters()}
    for name, options in wanted.items():
        try:
            selection = select(model, scores, **options)
        except SamtuneError as err:
            facts[name]["reason"] = str(err)
            continue
        path = folder / f"{name}.safetensors"
        facts[name] |= {"path": path, **entry_facts(selection, shapes)}
        save_selection(selection, path, shapes)
    return facts


def entry_facts(selection: Selection, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Returns U over linear and pointwise layers and the bytes of selected entries; nothing where none trains."""
    shares = [
        len((indices % shapes[name][1]).unique()) / shapes[name][1]
        for name, indices in selection.entries.items()
        if len(shapes[name]) == 2 or shapes[name][2:] == (1, 1)
    ]
    if not shares:
        return {}
    packed = sum(pack_indices(indices, shapes[name])[1].nbytes for name, indices in selection.entries.items())
    values = sum(4 * len(indices) for indices in selection.entries.values())
    return {"union": statistics.mean(shares), "bytes_selected": packed + values}


def measure(args: argparse.Namespace, facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Starts a process per method, one after the other, lets them step in turns, and returns the table's rows."""
    context = multiprocessing.get_context("forkserver")  # a fork of clean imports: fast, and they are shared
    late = ["peft"] if any(name.startswith("peft") for name in facts) else []
    context.set_forkserver_preload([*PRELOAD, *MODELS[args.model].libraries, *late])
    rows: list[dict[str, Any]] = []
    running: list[tuple[dict[str, Any], Connection]] = []
    for name, known in facts.items():
        path = known.pop("path", None)
        row = dict.fromkeys(COLUMNS) | {"method": name} | known
        rows.append(row)
        if row["reason"] is not None:
            continue
        ours, theirs = context.Pipe()
        context.Process(target=run_method, args=(theirs, args, name, path), daemon=True).start()
        theirs.close()
        row.update(answer(ours, row))
        if row["reason"] is None:
            running.append((row, ours))
    times: dict[str, list[float]] = {row["method"]: [] for row, _ in running}
    for _ in range(args.repeats):
        for row, connection in running:
            connection.send("turn")
            times[row["method"]].append(answer(connection, row))
    for row, connection in running:
        connection.close()  # ends the process
        found = times[row["method"]]
        row |= {"step_ms": statistics.median(found), "step_ms_min": min(found), "step_ms_max": max(found)}
    return rows


def answer(connection: Connection, row: Mapping[str, Any]) -> Any:
    """Waits for what a method's process has to say."""
    try:
        return connection.recv()
    except EOFError:
        raise SystemExit(f"{row['method']} ended without an answer: its error is above, or memory ran out.") from None


def run_method(connection: Connection, args: argparse.Namespace, name: str, path: Path | None) -> None:
    """Is the process of one method: sends memory, counts and bytes, then the milliseconds of one step per turn."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    load_lazy_parts(args, device)
    task = build_task(args)
    model, batch = task.model.to(device).train(), task.batch.to(device)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.net.named_parameters()}
    map_from(2**20)
    base = start_memory(device)
    selection = None if path is None else load_selection(path)
    try:
        tuned = METHODS[name].attach(model, selection, base_dtype(name, args))
    except SamtuneError as err:
        connection.send({"reason": str(err)})
        return
    step = make_step(model, batch, task.loss, tuned, bf16=args.precision == "bf16")
    for _ in range(WARM_UP):
        step()
    trainable = tuned[0]
    memory = peak_memory(device) - base
    map_from(2**25)
    size = saved_bytes(trainable, {} if selection is None else selection.entries, shapes)
    connection.send(
        {"memory_mb": memory / 2**20, "trainable": sum(p.numel() for p in trainable.values()), "bytes": size}
    )
    with suppress(EOFError):
        while connection.recv():
            step()
            connection.send(1000 * timed(step, device))
            give_back(device)


def base_dtype(name: str, args: argparse.Namespace) -> torch.dtype | None:
    """Returns what the frozen weights of a row are stored as; None for as they are.

    Raises:
        ConfigError: bf16 weights for an fp32 step.
    """
    own = METHODS[name].base
    if own == torch.bfloat16 and args.precision == "fp32":
        raise ConfigError("an fp32 step can't use bf16 weights.")
    return own or (torch.bfloat16 if args.base == "bf16" else None)


def make_step(
    model: nn.Module, batch: AnyBatch, loss: Callable[[Tensor], Tensor], tuned: Tuned, *, bf16: bool
) -> Callable[[], None]:
    """Returns a function that takes one training step."""
    trainable, before_step = tuned
    fused = updates_in_one_call(trainable.values()) or None
    optimizer = torch.optim.AdamW(list(trainable.values()), lr=1e-4, fused=fused) if trainable else None

    def step() -> None:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            logits = model(batch)
        loss(logits).backward()
        before_step()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Returns the seconds that a step takes."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - start


def load_lazy_parts(args: argparse.Namespace, device: torch.device) -> None:
    """Takes a step of a small model: what libraries load at their first use is no memory of a method."""
    small = argparse.Namespace(model=MODELS[args.model].small, size=64, batch=1)
    task = build_task(small)
    model = task.model.to(device)
    tuned = dict(model.net.named_parameters()), lambda: None
    make_step(model, task.batch.to(device), task.loss, tuned, bf16=args.precision == "bf16")()


def start_memory(device: torch.device) -> int:
    """Forgets the peak so far and returns the bytes in use."""
    give_back(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    return process_memory("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes in use since `start_memory`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else process_memory("VmHWM")


def process_memory(key: str) -> int:
    """Returns a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def map_from(size: int) -> None:
    """Sets the bytes from which glibc maps an allocation of its own, and unmaps it when it is freed.

    Low while memory is measured: the heap's holes, up to a third of the peak, tell of the allocator and not of a
    method. High while time is measured, as glibc itself sets it in a training process.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)


def give_back(device: torch.device) -> None:
    """Returns freed memory to the system, so that waiting processes hold little more than their model."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def saved_bytes(
    trainable: Mapping[str, Tensor], entries: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Returns the size of a file of everything that trains; single entries come with their packed places."""
    tensors = dict(trainable)
    for name in entries.keys() & trainable.keys():
        if trainable[name].shape == entries[name].shape:  # not for dense training with masks
            kind, packed = pack_indices(entries[name], shapes[name])
            tensors[f"{kind}/{name}"] = packed
    if not tensors:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.safetensors"
        save_tensors(path, tensors, {})
        return path.stat().st_size


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Adds `step_ratio` (to `floor`) and `memory_ratio` (to `masked_dense`); None where one of the two is missing."""
    for key, value, reference in (("step_ratio", "step_ms", "floor"), ("memory_ratio", "memory_mb", "masked_dense")):
        unit = next((row[value] for row in rows if row["method"] == reference), None)
        for row in rows:
            row[key] = None if unit is None or row[value] is None else row[value] / unit


def machine(device: str, threads: int) -> dict[str, Any]:
    """Returns what the numbers were measured on."""
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what was measured."""
    kept = ("model", "size", "batch", "precision", "base", "repeats")
    return {key: getattr(args, key) for key in kept} | {"weights": "random", "images": "random"}


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the table, why rows are empty, and what was measured on what."""
    lines = [
        "| method | step, ms | / floor | memory, MiB | / masked_dense | trainable | bytes | U |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [text(row[key]) if row[key] is not None else "" for key, text in CELLS.items()]
        if row["step_ms"] is not None:
            cells[0] += f" ({row['step_ms_min']:,.0f} to {row['step_ms_max']:,.0f})"
        lines.append(" | ".join([f"| {row['method']}", *cells]) + " |")
    empty = [f"{row['method']} is empty: {row['reason']}" for row in result["rows"] if row["reason"]]
    facts = "; ".join(f"{key} {value}" for key, value in (result["settings"] | result["machine"]).items())
    return "\n".join(lines) + "\n\n" + "\n\n".join([*empty, facts + "."])


CELLS: dict[str, Callable[[Any], str]] = {
    "step_ms": "{:,.0f}".format,
    "step_ratio": "{:.2f}".format,
    "memory_mb": "{:,.0f}".format,
    "memory_ratio": "{:.2f}".format,
    "trainable": "{:,}".format,
    "bytes": "{:,}".format,
    "union": "{:.2f}".format,
}
COLUMNS = ("method", *CELLS, "step_ms_min", "step_ms_max", "bytes_selected", "reason")


def save_picture(result: Mapping[str, Any], path: Path) -> None:
    """Draws step time against memory, references grey, the package's methods blue."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    measured_rows = [row for row in result["rows"] if row["step_ms"] is not None]
    for index, row in enumerate(sorted(measured_rows, key=lambda row: row["memory_mb"])):
        side = "left" if index % 2 else "right"  # neighbours in height write to different sides
        color = "tab:blue" if METHODS[row["method"]].attach is attached else "dimgrey"
        low, high = row["step_ms"] - row["step_ms_min"], row["step_ms_max"] - row["step_ms"]
        place = row["step_ms"], row["memory_mb"]
        axes.errorbar(*place, xerr=[[low], [high]], fmt="o", color=color, ecolor="lightgrey", markersize=5)
        offset = (5, 3) if side == "right" else (-5, 3)
        align = "left" if side == "right" else "right"
        axes.annotate(row["method"], place, offset, textcoords="offset points", ha=align, fontsize=8, color=color)
    axes.set(xlabel="one training step, ms (median, least to most)", ylabel="peak memory over the plain model, MiB")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(ticker.ScalarFormatter())
        axis.set_major_formatter(ticker.ScalarFormatter())
    measured = result["settings"]
    axes.set_title(
        f"{measured['model']}, {measured['size']} px, batch {measured['batch']}, {measured['precision']}, "
        f"{measured['base']} base; {result['machine']['device']}"
    )
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
