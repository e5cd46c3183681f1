"""The phases of a run, each a function of the job: select, train, merge, evaluate, report.

`recipe` knows their order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from samtune import artifacts, console
from samtune.config import Config
from samtune.data import SegmentationDataset
from samtune.errors import CheckpointError
from samtune.evaluation import DEFAULT_METRICS, evaluate
from samtune.gallery import save_gallery
from samtune.job import Job
from samtune.losses import LOSSES
from samtune.metrics.table import Report
from samtune.models import SamModel
from samtune.models.merged import MergedInfo, load_merged, save_merged
from samtune.report import save_report
from samtune.runfolder import disk_errors
from samtune.scoring import contrastive_loss, score, task_loss
from samtune.selection import SELECTORS, Selection, select
from samtune.tracking import RunLog
from samtune.training import Event, FitResult, Optimisation, fit
from samtune.tuning import Counts, attach, count, count_by_block, merge
from samtune.types import Batch, LogitLoss

logger = logging.getLogger(__name__)


def select_parameters(job: Job, batches: list[Batch] | None = None) -> Selection:
    """Scores if the selector needs it, selects, and records where the selection came from."""
    config = job.config
    scores = None
    if SELECTORS[config.select.name].scored:
        options = config.score
        loss = (
            task_loss
            if options.loss == "task"
            else contrastive_loss(cells=options.cells, temperature=options.temperature, seed=config.run.seed)
        )
        source = job.loaders.score if batches is None else batches
        with console.progress("score", len(source)) as advance:
            scores = score(job.model, _counted(source, advance), loss)
    selection = select(
        job.model,
        scores,
        name=config.select.name,
        decoder=config.tune.decoder,
        biases=config.tune.biases,
        **config.select.options,
    )
    provenance = {
        "method": config.select.name,
        "options": json.dumps(config.select.options),
        "model": job.model.name,
        "base_hash": job.base_hash,
        "seed": str(config.run.seed),
    }
    if scores is not None:
        provenance |= {"loss": config.score.loss, "images_hash": scores.images_hash, "split": "train"}
    return Selection(selection.entries, selection.whole, provenance)


def announce(job: Job, selection: Selection) -> Counts:
    """Prints what will train, per block and kind, and returns the counts."""
    counts = count(job.model, selection)
    rows = count_by_block(job.model, selection)
    kinds = sorted({kind for _, kind, _ in rows})
    amounts = {(block, kind): amount for block, kind, amount in rows}
    table = [
        [block, *(f"{amounts.get((block, kind), 0):,}" for kind in kinds)]
        for block in dict.fromkeys(block for block, _, _ in rows)
    ]
    totals = [sum(amount for (_, k), amount in amounts.items() if k == kind) for kind in kinds]
    table.append(["all", *(f"{total:,}" for total in totals)])
    title = f"{job.config.select.name}: {counts.total:,} trainable parameters, {counts.percent:.2f} % of the model"
    console.print_table(table, columns=["", *kinds], title=title)
    if counts.decoder:
        idle = _without_gradient(job.model)
        logger.info("of the decoder, %s parameters serve other mask tokens than 0 and get no gradient", f"{idle:,}")
    return counts


def train(job: Job, selection: Selection, log: RunLog) -> FitResult:
    """Attaches the selection and trains it."""
    config = job.config
    trainable = attach(job.model, selection)
    options = optimisation_of(config)
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
            job.model,
            trainable,
            job.loaders,
            fabric=job.fabric,
            loss=task_loss_of(config),
            optimisation=options,
            validate=lambda: evaluate(
                job.model,
                job.loaders.val,
                metrics=(),
                split="val",
                empty=config.eval.empty,
                autocast_dtype=job.autocast,
            ),
            on_event=on_event,
        )
    logger.info(
        "%d steps in %.0f s; best epoch %d, val mDice %.4f",
        result.steps,
        result.seconds,
        result.best_epoch,
        result.best_mDice,
    )
    return result


def merge_and_audit(job: Job, selection: Selection, folder: Path) -> None:
    """Merges, writes merged model and delta, and proves from the files that they are true.

    Raises:
        CheckpointError: an unselected entry moved, merged and tuned logits differ, or the delta does not lead from
            the base to the merged model and back; a bug of ours. The files stay.
    """
    batch = next(iter(job.loaders.val)).to(job.model.device)
    with torch.no_grad():
        tuned = job.model.eval()(batch)
    state = {name: tensor.detach().cpu() for name, tensor in merge(job.model).state_dict().items()}
    info = MergedInfo(
        model=job.model.name,
        image_size=job.model.image_size,
        prompt=job.config.data.prompt,
        base_hash=job.base_hash,
    )
    merged_file, delta_file = folder / "merged.safetensors", folder / "delta.safetensors"
    with disk_errors(folder):
        save_merged(merged_file, job.model, info)
        artifacts.save_delta(delta_file, base=job.base, merged=state, selection=selection, metadata=info.to_metadata())
    # from the files, as a user gets them
    merged, _ = load_merged(merged_file, device=job.model.device)
    with torch.no_grad():
        worst = float((tuned - merged(batch)).abs().max())
    audit = artifacts.audit(job.base, {n: t.cpu() for n, t in merged.state_dict().items()}, selection)
    problems = [] if worst == 0 else [f"merged logits differ from tuned logits by up to {worst:.3g}"]
    problems += [] if audit.ok else list(audit.lines)
    problems += [] if artifacts.delta_restores(job.base, delta_file) else ["base + delta is not the merged model"]
    if problems:
        raise CheckpointError(f"the audit of {folder} failed: {'; '.join(problems)}. Please report this bug.")
    for line in (*audit.lines, "merged logits equal tuned logits", "base + delta = merged model, and back"):
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


def save_pages(job: Job, report: Report, log: RunLog, folder: Path, command: str) -> None:
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
            "Method": " ".join([config.select.name, *(f"{k}={v}" for k, v in config.select.options.items())]),
            "Data": str(config.data.dir),
            "Prompt": config.data.prompt,
        },
    )


def optimisation_of(config: Config) -> Optimisation:
    """Returns the `train` section as what `fit` takes."""
    names = Optimisation.__dataclass_fields__
    return Optimisation(**{name: value for name, value in config.train.model_dump().items() if name in names})


def task_loss_of(config: Config) -> LogitLoss:
    """Returns the loss of the `loss` section."""
    options = config.loss.model_dump()
    function = LOSSES[options.pop("name")]
    return lambda logits, batch: function(logits, batch, **options)


def shapes_of(model: SamModel) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _without_gradient(model: SamModel) -> int:
    """Counts decoder parameters that mask token 0 does not depend on: IoU head, other tokens' hypernetworks."""
    decoder = model.mask_decoder
    idle = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
    return sum(p.numel() for module in idle for p in module.parameters())


def _counted(batches: Any, advance: Any) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance()
