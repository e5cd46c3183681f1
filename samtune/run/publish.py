"""What a run shows: the evaluation of its model, what to think of it, pictures, the report."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from samtune import console
from samtune.base.machine import forget_peak, peak_mib
from samtune.base.tracking import RunLog
from samtune.metrics.advice import not_better, parted
from samtune.metrics.report import AnyReport
from samtune.metrics.trivial import TRIVIAL
from samtune.report.run import Event, Run, save_report, series
from samtune.run.prepare import Job
from samtune.selection import Selection
from samtune.tasks.task import Measuring

logger = logging.getLogger(__name__)


def evaluate_model(job: Job, title: str, *, keep: Path | None = None) -> tuple[AnyReport, dict[str, float]]:
    """Evaluates the model as it is, in fp32, on the part that the run reports on.

    Returns:
        The report, and what it took: "seconds" and "memory_mib". For `keep` see `Measuring`.
    """
    split = job.config.eval.split
    start, loaded = time.monotonic(), forget_peak(job.model.device)
    with console.progress(f"evaluate {title}", len(job.loaders.part(split))) as advance:
        report = job.task.evaluate(job.model, job.loaders, Measuring(split, full=True, keep=keep, advance=advance))
    return report, {"seconds": time.monotonic() - start, "memory_mib": max(0.0, peak_mib(job.model.device) - loaded)}


def advise(job: Job, report: AnyReport, before: AnyReport | None, history: Sequence[Event]) -> list[str]:
    """Returns what a user should know before relying on the numbers of a run, and logs it as warnings."""
    words = job.task.words
    values = [words.columns[words.choice](row) for row in report.rows]
    curves = (series(history, "train", "loss"), series(history, "val", words.choice))
    advice = [
        *not_better(values, report.trivial, images=report.images, name=words.choice, words=TRIVIAL),
        *job.task.remarks(job.model, job.loaders, report, before),
        *parted(*curves, name=words.choice),
    ]
    for line in advice:
        logger.warning("%s", line)
    return advice


def save_pages(
    job: Job, selection: Selection, report: AnyReport, log: RunLog, *, best_epoch: int, folder: Path, command: str
) -> None:
    """Draws the pictures of the run and writes `report.html`."""
    pages = job.task.draw(job.model, job.loaders, report, folder)
    made_by = selection.provenance
    options = (f"{key}={value}" for key, value in json.loads(made_by.get("options", "{}")).items())
    run = Run(
        title=job.config.run.name,
        facts={**pages.facts, "Method": " ".join([made_by["method"], *options])},
        metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        headlines=job.task.words.headlines,
        choice=job.task.words.choice,
        history=log.history,
        best_epoch=best_epoch,
        sections=pages.sections,
        command=command or f"samtune finetune --config {folder / 'config.yaml'}",
        config_yaml=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    save_report(folder / "report.html", run)
