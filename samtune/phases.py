"""The phases of a run after the selection, each a function of the job: train, merge, evaluate, report.

`recipe` knows their order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from samtune import artifacts, console
from samtune.config import Config
from samtune.data import SegmentationDataset
from samtune.delta import delta_restores, save_delta
from samtune.embeddings import CachedEncoder, check_embeddings
from samtune.errors import CheckpointError
from samtune.evaluation import DEFAULT_METRICS, evaluate
from samtune.gallery import save_gallery
from samtune.job import Job, task_loss_of
from samtune.machine import forget_peak, peak_mib
from samtune.metrics.table import Report
from samtune.models.merged import MergedInfo, load_merged, save_merged
from samtune.report import save_report
from samtune.runfolder import disk_errors
from samtune.selection import Selection
from samtune.startpoint import Penalty, start_penalty
from samtune.tracking import RunLog
from samtune.training import Event, FitResult, Optimisation, fit
from samtune.tuning import attach, merge
from samtune.tuning.precision import is_lowered, restore_base

logger = logging.getLogger(__name__)


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
                shown["val_mDice"] = f"{event['mDice']:.4f}"
                return
            shown.update(loss=event["loss"], lr=event["lr"], images_per_s=event["images_per_s"])
            advance(1, epoch=str(event["epoch"]), **shown)

        result = fit(
            network,
            trainable,
            job.loaders,
            fabric=job.fabric,
            loss=task_loss_of(config),
            optimisation=options,
            validate=lambda: evaluate(
                network,
                job.loaders.val,
                metrics=(),
                split="val",
                empty=config.eval.empty,
                autocast_dtype=job.autocast,
            ),
            on_event=on_event,
            penalty=penalty_of(job, trainable),
        )
    memory = peak_mib(job.model.device) - loaded
    log.event({"split": "fit", "step": result.steps, "seconds": result.seconds, "memory_mib": memory})
    logger.info(
        "%d steps in %.0f s; best epoch %d, val mDice %.4f",
        result.steps,
        result.seconds,
        result.best_epoch,
        result.best_mDice,
    )
    return result


def attach_selection(job: Job, selection: Selection) -> dict[str, nn.Parameter]:
    """Attaches a selection as the config says."""
    base_dtype = torch.bfloat16 if job.config.tune.base == "bf16" else None
    return attach(job.model, selection, seed=job.config.run.seed, base_dtype=base_dtype)


def network_of(job: Job, selection: Selection) -> nn.Module:
    """Returns what is trained: the model, or the model behind cached embeddings if the config asks for them."""
    folder = job.config.train.embeddings
    if folder is None:
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
    batch = next(iter(job.loaders.val)).to(job.model.device)
    if is_lowered(job.model):
        restore_base(job.model, job.base)
    with torch.no_grad():
        tuned = job.model.eval()(batch)
    merge(job.model)
    state = {name: tensor.detach().cpu().float() for name, tensor in job.model.state_dict().items()}
    info = MergedInfo(
        model=job.model.name,
        image_size=job.model.image_size,
        prompt=job.config.data.prompt,
        base_hash=job.base_hash,
        additions=tuple(addition for addition in selection.additions if not addition.merges),
    )
    merged_file, delta_file = folder / info.file_name, folder / "delta.safetensors"
    with disk_errors(folder):
        save_merged(merged_file, job.model, info)
        save_delta(delta_file, base=job.base, merged=state, selection=selection, metadata=info.to_metadata())
    # from the files, as a user gets them
    merged, _ = load_merged(merged_file, device=job.model.device)
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


def evaluate_test(job: Job, name: str) -> Report:
    """Evaluates the model as it is on the test split, in fp32."""
    with console.progress(f"evaluate {name}", len(job.loaders.test)) as advance:
        return evaluate(
            job.model,
            job.loaders.test,
            metrics=(*DEFAULT_METRICS, *job.config.eval.metrics),
            split="test",
            empty=job.config.eval.empty,
            on_batch=lambda *_: advance(),
        )


def save_pages(job: Job, selection: Selection, report: Report, log: RunLog, *, folder: Path, command: str) -> None:
    """Draws the overlays of best, median and worst cases and writes `report.html`."""
    dataset, pairs = job.loaders.test.dataset, job.loaders.splits.test
    assert isinstance(dataset, SegmentationDataset)
    each = job.config.eval.overlays
    overlays = save_gallery(folder / "overlays", job.model, dataset, pairs, report, each=each)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = job.config
    save_report(
        folder / "report.html",
        title=config.run.name,
        metrics=metrics,
        history=log.history,
        counts=metrics["trainable"],
        overlays=overlays,
        command=command or f"samtune finetune --config {folder / 'config.yaml'}",
        config_yaml=(folder / "config.yaml").read_text(encoding="utf-8"),
        facts={
            "Model": f"{job.model.name}, {job.model.image_size} px",
            "Method": method_of(selection),
            "Data": str(config.data.dir),
            "Prompt": config.data.prompt,
        },
    )


def method_of(selection: Selection) -> str:
    """Returns the method that made a selection, with its options."""
    options = json.loads(selection.provenance.get("options", "{}"))
    return " ".join([selection.provenance["method"], *(f"{k}={v}" for k, v in options.items())])


def optimisation_of(config: Config) -> Optimisation:
    """Returns the `train` section as what `fit` takes."""
    names = Optimisation.__dataclass_fields__
    return Optimisation(**{name: value for name, value in config.train.model_dump().items() if name in names})
