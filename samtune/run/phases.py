"""The phases of a run that may be done already, when it goes on: each is read back, or done and kept."""

import json
import logging
from itertools import takewhile
from pathlib import Path
from typing import Any

from samtune.base.signals import deferred
from samtune.base.tracking import RunLog
from samtune.errors import CheckpointError, DataError
from samtune.metrics.report import AnyReport
from samtune.run.checkpoints.keep import RunKeeper, ScoreKeeper
from samtune.run.checkpoints.resume import HISTORY
from samtune.run.prepare import Job
from samtune.run.publish import evaluate_model
from samtune.run.select import select_parameters, shapes_of
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
    return keeper


def open_log(job: Job, folder: Path, keeper: RunKeeper) -> RunLog:
    """Opens the log of a run with the events that its state knows; where there is none, those before the training."""
    file, earlier = folder / HISTORY, list[dict[str, Any]]()
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        earlier = [json.loads(line) for line in lines[: keeper.events]]
        if keeper.start is None:
            earlier = list(takewhile(lambda event: event["split"] == "before", earlier))
    params = job.config.model_dump(mode="json")
    return RunLog(folder, run_name=job.config.run.name, params=params, history=earlier, **job.config.track.model_dump())


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


def selection_of(job: Job, folder: Path) -> Selection:
    """Returns the selection of a run: the one that it has, else a new one, written to it.

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
        selection = select_parameters(job)  # each process has a part of the sums: there is nothing to keep
    else:
        with deferred("saves the scores so far") as stop:
            keeper = ScoreKeeper(folder, about={"base": job.base_hash}, stop=stop)
            keeper.read()
            selection = select_parameters(job, keeper=keeper)
            stop.end()
    if job.share.first:
        save_selection(selection, file, shapes_of(job.model))
    return selection
