"""The phases of a run after the selection, each a function of the job: train, merge, evaluate, report.

`recipe` knows their order.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samtune import console
from samtune.base.disk import disk_errors
from samtune.base.machine import forget_peak, peak_mib
from samtune.base.tracking import RunLog
from samtune.config.load import Config
from samtune.errors import CheckpointError
from samtune.files import artifacts
from samtune.files.delta import delta_restores, save_delta
from samtune.files.merged import save_merged
from samtune.metrics.report import AnyReport
from samtune.models.sam.model import SamModel
from samtune.report.run import Run, save_report
from samtune.run.fit import Event, FitResult, Optimisation, fit
from samtune.run.prepare import Job
from samtune.selection import Selection
from samtune.tasks.masks.embeddings import CachedEncoder, check_embeddings
from samtune.tuning import attach, merge
from samtune.tuning.precision import is_lowered, restore_base
from samtune.tuning.start import Penalty, start_penalty

logger = logging.getLogger(__name__)

Cost = dict[str, float]


def train(job: Job, selection: Selection, log: RunLog) -> FitResult:
    """Attaches the selection and trains it."""
    config = job.config
    trainable = attach_selection(job, selection)
    network = network_of(job, selection)
    options = optimisation_of(config)
    loaded = forget_peak(job.model.device)
    with console.progress("train", options.total_steps(len(job.loaders.train))) as advance:
        shown: dict[str, float | str] = {}

        def on_event(event: Event) -> None:
            log.event(event)
            if event["split"] == "val":
                name = next(name for name in event if name not in ("split", "step", "epoch"))
                shown[f"val_{name}"] = f"{event[name]:.4f}"
                return
            shown.update(loss=event["loss"], lr=event["lr"], images_per_s=event["images_per_s"])
            advance(1, epoch=str(event["epoch"]), **shown)

        def validate() -> AnyReport:
            return job.task.evaluate(config, network, job.loaders, split="val", full=False, autocast=job.autocast)

        result = fit(
            network,
            trainable,
            job.loaders,
            fabric=job.fabric,
            loss=job.task.training_loss(config),
            optimisation=options,
            validate=None if job.loaders.val is None else validate,
            on_event=on_event,
            penalty=penalty_of(job, trainable),
            mix=job.task.mixing(config, job.loaders),
        )
    memory = peak_mib(job.model.device) - loaded
    log.event({"split": "fit", "step": result.steps, "seconds": result.seconds, "memory_mib": memory})
    chosen = "the last epoch is kept" if job.loaders.val is None else f"best epoch {result.best_epoch}"
    value = "" if math.isnan(result.best_value) else f", val {result.best_value:.4f}"
    logger.info("%d steps in %.0f s; %s%s", result.steps, result.seconds, chosen, value)
    return result


def attach_selection(job: Job, selection: Selection) -> dict[str, nn.Parameter]:
    """Attaches a selection as the config says."""
    base_dtype = torch.bfloat16 if job.config.tune.base == "bf16" else None
    return attach(job.model, selection, seed=job.config.run.seed, base_dtype=base_dtype)


def network_of(job: Job, selection: Selection) -> nn.Module:
    """Returns what is trained: the model, or the model behind cached embeddings if the config asks for them."""
    folder = getattr(job.config.train, "embeddings", None)
    if folder is None or not isinstance(job.model, SamModel):
        return job.model
    check_embeddings(job.model, selection)
    return CachedEncoder(job.model, folder, base_hash=job.base_hash, autocast=job.autocast)


def penalty_of(job: Job, trainable: Mapping[str, nn.Parameter]) -> Penalty | None:
    """Returns the pull to the start point if the config asks for it, else None."""
    start = job.config.tune.start
    if start.weight == 0:
        return None
    return start_penalty(job.model, trainable, weight=start.weight, norm=start.norm, blocks=start.blocks)


MERGED_TOLERANCE = 1e-4
"""How far folding LoRA or SSF may move a logit, of the largest logit; without them logits stay bit-equal."""


def merge_and_audit(job: Job, selection: Selection, folder: Path) -> None:
    """Merges, writes merged model (or bundle) and delta, and proves from the files that they are true.

    Raises:
        CheckpointError: an unselected entry moved, merged and tuned logits differ, or the delta does not lead from
            the base to the merged model and back; a bug of ours. The files stay.
    """
    batch = next(iter(job.loaders.score if job.loaders.val is None else job.loaders.val)).to(job.model.device)
    if is_lowered(job.model):
        restore_base(job.model, job.base)
    with torch.no_grad():
        tuned = job.model.eval()(batch)
    merge(job.model)
    state = {name: tensor.detach().cpu().float() for name, tensor in job.model.state_dict().items()}
    added = tuple(addition for addition in selection.additions if not addition.merges)
    info = job.task.info(job.config, job.model, job.loaders, base_hash=job.base_hash, additions=added)
    merged_file, delta_file = folder / info.file_name, folder / "delta.safetensors"
    with disk_errors(folder):
        save_merged(merged_file, job.model, info)
        save_delta(delta_file, base=job.base, merged=state, selection=selection, metadata=info.to_metadata())
    # from the files, as a user gets them
    merged = job.task.load_merged(merged_file, device=job.model.device)
    with torch.no_grad():
        worst = float((tuned - merged(batch)).abs().max())
    folded = any(addition.merges for addition in selection.additions)
    tolerance = MERGED_TOLERANCE * max(1.0, float(tuned.abs().max())) if folded else 0.0
    audit = artifacts.audit(job.base, {n: t.cpu() for n, t in merged.state_dict().items()}, selection)
    problems = [] if worst <= tolerance else [f"merged logits differ from tuned logits by up to {worst:.3g}"]
    problems += [] if audit.ok else list(audit.lines)
    problems += [] if delta_restores(job.base, delta_file) else ["base + delta is not the merged model"]
    if problems:
        raise CheckpointError(f"the audit of {folder} failed: {'; '.join(problems)}. Please report this bug.")
    equal = "equal tuned logits" if worst == 0 else f"are within {worst:.1g} of tuned logits"
    for line in (*audit.lines, f"merged logits {equal}", "base + delta = merged model, and back"):
        logger.info("audit: %s", line)


def evaluate_model(job: Job, title: str, *, keep: Path | None = None) -> tuple[AnyReport, Cost]:
    """Evaluates the model as it is on the part that the run reports on, in fp32.

    Args:
        job: model and data.
        title: of the progress line.
        keep: as of `Task.evaluate`.

    Returns:
        The report, and the time and memory that it took.
    """
    split = job.config.eval.split
    loader: Any = getattr(job.loaders, split)
    start, loaded = time.monotonic(), forget_peak(job.model.device)
    with console.progress(f"evaluate {title}", len(loader)) as advance:
        report = job.task.evaluate(
            job.config, job.model, job.loaders, split=split, full=True, keep=keep, advance=advance
        )
    cost = {"seconds": time.monotonic() - start, "memory_mib": max(0.0, peak_mib(job.model.device) - loaded)}
    return report, cost


def save_pages(
    job: Job, selection: Selection, report: AnyReport, log: RunLog, *, best_epoch: int, folder: Path, command: str
) -> None:
    """Draws the pictures of the run and writes `report.html`."""
    pages = job.task.draw(job.config, job.model, job.loaders, report, folder)
    run = Run(
        title=job.config.run.name,
        facts={**pages.facts, "Method": method_of(selection)},
        metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        headline=pages.headline,
        history=log.history,
        best_epoch=best_epoch,
        sections=pages.sections,
        command=command or f"samtune finetune --config {folder / 'config.yaml'}",
        config_yaml=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    save_report(folder / "report.html", run)


def method_of(selection: Selection) -> str:
    """Returns the method that made a selection, with its options."""
    options = json.loads(selection.provenance.get("options", "{}"))
    return " ".join([selection.provenance["method"], *(f"{k}={v}" for k, v in options.items())])


def optimisation_of(config: Config) -> Optimisation:
    """Returns the `train` section as what `fit` takes."""
    names = Optimisation.__dataclass_fields__
    return Optimisation(**{name: value for name, value in config.train.model_dump().items() if name in names})
