"""The training of a job: attach the selection, fit, log."""

import logging
import math
from collections.abc import Callable, Mapping

import torch
from lightning_fabric import seed_everything
from torch import nn

from samtune import console
from samtune.base.machine import forget_peak, peak_mib
from samtune.run.checkpoints.keep import RunKeeper
from samtune.run.checkpoints.space import check_space
from samtune.run.fit import Event, FitResult, Validation, Watch, fit, total_steps
from samtune.run.prepare import Job
from samtune.run.updates import Objective
from samtune.selection import Selection
from samtune.tasks.task import Measuring
from samtune.tuning import attach
from samtune.tuning.start import start_penalty

logger = logging.getLogger(__name__)

NOTHING = Validation(math.nan, {})  # what a process has that waits for the first one's validation


def train(job: Job, selection: Selection, keeper: RunKeeper, log: Callable[[Event], None]) -> FitResult:
    """Attaches the selection and trains it, from where the keeper's state is if it has one."""
    seed_everything(job.config.run.seed + job.share.number, verbose=False)  # whatever drew numbers before
    trainable = attach_selection(job, selection)
    check_space(keeper.folder, job.model, selection, trainable.values(), ema=job.config.train.ema is not None)
    network = job.task.network(job.model, selection, base_hash=job.base_hash, autocast=job.autocast)
    loaded = forget_peak(job.model.device)
    made = 0 if keeper.start is None else keeper.start.progress.step
    plan = job.config.train
    total = total_steps(plan, len(job.loaders.train))
    if plan.steps is not None and total < plan.steps:
        few = "train.epochs=%d ends the training after %d steps, before train.steps=%d: raise it for more"
        logger.warning(few, plan.epochs, total, plan.steps)
    with console.progress("train", total - made) as advance:
        choice, val = job.task.words.choice, dict[str, str]()

        def on_event(event: Event) -> None:
            log(event)
            if event["split"] == "val":
                val[f"val_{choice}"] = f"{event[choice]:.4f}"
            else:  # what matters first: a narrow terminal shows no more
                rest = {name: event[name] for name in ("lr", "images_per_s")}
                advance(1, epoch=str(event["epoch"]), loss=event["loss"], **val, **rest)

        def validate() -> Validation:
            how, first = Measuring("val", full=False, autocast=job.autocast), job.share.first
            report = job.task.evaluate(network, job.loaders, how) if first else None
            return job.share.of_first(Validation(report.choice, report.values) if report else NOTHING)

        result = fit(
            network,
            trainable,
            job.loaders,
            fabric=job.fabric,
            objective=objective_of(job, trainable),
            optimisation=plan,
            watch=Watch(on_event, None if job.loaders.val is None else validate, keeper),
        )
    memory = peak_mib(job.model.device) - loaded
    log({"split": "fit", "step": result.steps, "seconds": result.seconds, "memory_mib": memory})
    chosen = "the last epoch is kept" if job.loaders.val is None else f"best epoch {result.best_epoch}"
    value = "" if math.isnan(result.best_value) else f", val {result.best_value:.4f}"
    logger.info("%d steps in %.0f s; %s%s", result.steps, result.seconds, chosen, value)
    return result


def attach_selection(job: Job, selection: Selection) -> dict[str, nn.Parameter]:
    """Attaches a selection as the config says."""
    base_dtype = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}[job.config.tune.base]
    return attach(job.model, selection, seed=job.config.run.seed, base_dtype=base_dtype)


def objective_of(job: Job, trainable: Mapping[str, nn.Parameter]) -> Objective:
    """Returns the task's loss and mixing, with the pull to the start point if the config asks for it."""
    start = job.config.tune.start
    penalty = None
    if start.weight:
        penalty = start_penalty(job.model, trainable, weight=start.weight, norm=start.norm, blocks=start.blocks)
    return Objective(job.task.training_loss(), penalty, job.task.mixing(job.loaders))
