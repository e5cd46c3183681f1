"""The end of a training: merge, write, and prove from the files that they are true."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from samtune.base.tensors import in_fp32
from samtune.errors import CheckpointError
from samtune.files.audit import audit
from samtune.files.delta import delta_restores, save_delta
from samtune.files.merged import load_merged, save_merged
from samtune.models.backbone import evaluation_mode
from samtune.run.prepare import Job
from samtune.selection import Selection
from samtune.tuning import merge
from samtune.tuning.precision import is_lowered, restore_base
from samtune.types import Batch

logger = logging.getLogger(__name__)

MERGED_TOLERANCE = 1e-4
"""How far a logit may move, of the largest, where LoRA or SSF is folded in, or an adapter works on a map whose channels
are not the last axis, whose last bits depend on where it lies in memory; otherwise logits stay bit-equal."""
STOCK = "transformers"
"""The folder that the merged model of a library that keeps models in folders goes to."""


def merge_and_audit(job: Job, selection: Selection, folder: Path) -> None:
    """Merges, writes merged model (or bundle) and delta, and proves from the files that they are true.

    Raises:
        CheckpointError: unselected entries or logits moved, or the delta does not restore both models: a bug of ours.
    """
    batch = job.loaders.example().to(job.model.device)
    trained_on = _answer(job, batch) if job.config.tune.base == "int8" else None
    if is_lowered(job.model):
        restore_base(job.model, job.base)
    tuned = _answer(job, batch)
    merge(job.model)
    state = in_fp32(job.model.net.state_dict())
    added = tuple(addition for addition in selection.additions if not addition.merges)
    about = job.task.describe(job.model, job.loaders, base_hash=job.base_hash, additions=added)
    merged_file, delta_file = folder / about.file_name, folder / "delta.safetensors"
    # the small file first: on a full disk it may fit where the other does not
    save_delta(delta_file, base=job.base, merged=state, selection=selection, metadata=about.to_metadata())
    save_merged(merged_file, job.model, about)
    # from the files, as a user gets them
    merged, _ = load_merged(merged_file, job.task.description, device=job.model.device)
    with torch.no_grad():
        worst = float((tuned - merged(batch)).abs().max())
    rounds = any(addition.merges or "axis" in addition.options for addition in selection.additions)
    tolerance = MERGED_TOLERANCE * max(1.0, float(tuned.abs().max())) if rounds else 0.0
    audited = audit(job.base, {n: t.cpu() for n, t in merged.net.state_dict().items()}, selection)
    problems = [] if worst <= tolerance else [f"merged logits differ from tuned logits by up to {worst:.3g}"]
    problems += [] if audited.ok else list(audited.lines)
    problems += [] if delta_restores(job.base, delta_file) else ["base + delta is not the merged model"]
    if problems:
        raise CheckpointError(f"the audit of {folder} failed: {'; '.join(problems)}. Please report this bug.")
    if job.model.keeps_folder and not added:
        job.model.save_stock(folder / STOCK)
        logger.info("%s is the merged model as its library reads it", folder / STOCK)
    if audited.idle:
        rate = f"train.lr = {job.config.train.lr:g} is far too high or too low"
        logger.warning("the training changed no selected entry, so this model is its base: perhaps %s", rate)
    if trained_on is not None:
        moved, largest = float((tuned - trained_on).abs().max()), float(tuned.abs().max())
        rounded = "the training, and its validations, saw the base in 8 bits; the merged model has it as it was"
        logger.info("audit: %s: logits of a batch moved by up to %.3g, of up to %.3g", rounded, moved, largest)
    equal = "equal tuned logits" if worst == 0 else f"are within {worst:.1g} of tuned logits"
    for line in (*audited.lines, f"merged logits {equal}", "base + delta = merged model, and back"):
        logger.info("audit: %s", line)


def _answer(job: Job, batch: Batch) -> Tensor:
    with evaluation_mode(job.model), torch.no_grad():
        logits: Tensor = job.model(batch)
    return logits
