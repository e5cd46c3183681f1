"""The phases of a run that may be done already, when it goes on: each is read back, or done and kept."""

import logging
from itertools import takewhile
from pathlib import Path

from samtune.base.signals import deferred
from samtune.base.tracking import RunLog
from samtune.base.tracking.sync import read_history
from samtune.errors import CheckpointError, DataError
from samtune.metrics.report import AnyReport
from samtune.run.checkpoints.keep import RunKeeper, ScoreKeeper
from samtune.run.checkpoints.resume import HISTORY
from samtune.run.fit import Event
from samtune.run.prepare import Job
from samtune.run.publish import evaluate_model
from samtune.run.select import Chosen, select_parameters, shapes_of
from samtune.selection import Selection, check_selection, load_selection, save_selection

logger = logging.getLogger(__name__)

SELECTION = "selection.safetensors"


def open_keeper(job: Job, folder: Path) -> RunKeeper:
    """Opens what keeps the training, at its last state if there is one.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
    """
    keeper = RunKeeper(folder, {"base": job.base_hash}, writes=job.share.first)
    keeper.read()
    step = keeper.start and keeper.start.progress.step
    if job.share.of_first(step) != step:
        raise CheckpointError(f"{folder} shows other checkpoints to other processes: all must share one folder.")
    return keeper


def open_log(job: Job, folder: Path, keeper: RunKeeper) -> RunLog:
    """Opens the log of a run with the events that its state knows; where there is none, those before the training."""
    file = folder / HISTORY
    every = read_history(file) if file.is_file() else []
    earlier = every[: keeper.events]
    if keeper.start is None:
        earlier = list(takewhile(lambda event: event["split"] in ("before", "select"), every))
    elif keeper.start.progress.finished:  # what it took is known to the process that made the steps
        earlier += [event for event in every[keeper.events :] if event["split"] == "fit"]
    params = job.config.model_dump(mode="json")
    return RunLog(folder, run_name=job.config.run.name, params=params, history=earlier, **job.config.track.model_dump())


def tell(log: RunLog, event: Event) -> None:
    """Logs an event of the training, but not a second time what it took."""
    if event["split"] != "fit" or not any(earlier["split"] == "fit" for earlier in log.history):
        log.event(event)


def measure_before(job: Job, folder: Path, log: RunLog) -> AnyReport | None:
    """Returns the report of the untuned model, where it can be measured."""
    if not job.task.measures_before:
        return None
    try:
        before = job.task.load_report(folder / "before")
    except DataError:
        before, _ = evaluate_model(job, "before")
        before.save(folder / "before")
    if not any(event["split"] == "before" for event in log.history):
        log.event({"split": "before", "step": 0, **before.values})
    return before


def selection_of(job: Job, folder: Path, log: RunLog | None = None) -> Selection:
    """Returns the selection of a run: the one that it has, else a new one, written to it.

    Args:
        log: is told what selecting took, with the scoring pass that it needs.

    Raises:
        CheckpointError: it is damaged, or of another base.
    """
    file = folder / SELECTION
    if job.share.of_first(file.is_file()):
        selection = load_selection(file)
        if selection.provenance.get("base_hash") != job.base_hash:
            raise CheckpointError(f"{file} is of another base. Delete it to select anew.")
        check_selection(selection, job.model)
        logger.info("%s: selected before", file)
        return selection
    if job.share.count > 1:
        chosen = select_parameters(job)  # each process has a part of the sums: there is nothing to keep
        _tell_cost(log, chosen)
        if job.share.first:
            save_selection(chosen.selection, file, shapes_of(job.model))
        job.share.of_first(None)  # the others read it when it is there
        return chosen.selection
    with deferred("saves the scores so far") as stop:
        keeper = ScoreKeeper(folder, about={"base": job.base_hash}, stop=stop)
        keeper.read()
        try:
            chosen = select_parameters(job, keeper=keeper)
        except Exception:
            stop.end()  # a signal to all processes of a group may be what made it fail
            raise
        _tell_cost(log, chosen)  # first: what has a selection is not selected again
        save_selection(chosen.selection, file, shapes_of(job.model))
        stop.end()
    return chosen.selection


def _tell_cost(log: RunLog | None, chosen: Chosen) -> None:
    """Logs what selecting took, once, where it is known."""
    if log is None or chosen.seconds is None or any(event["split"] == "select" for event in log.history):
        return
    log.event({"split": "select", "step": 0, "seconds": chosen.seconds, "memory_mib": chosen.memory_mib})
