"""The whole job, top to bottom: the only file that knows the order.

`finetune` = prepare, evaluate before, select, train, merge and audit, evaluate, report.
"""

import os
import platform
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from samtune.base.disk import write_text
from samtune.base.folder import locked, new_run
from samtune.base.launch import is_rank
from samtune.config.sections import Config
from samtune.data.splits import save_splits
from samtune.errors import ConfigError, NonFiniteError
from samtune.metrics.report import AnyReport
from samtune.run.checkpoints.resume import COMMAND, DONE, check_inputs, check_settings, check_threads, earlier_command
from samtune.run.fit import FitResult
from samtune.run.merge import merge_and_audit
from samtune.run.phases import SELECTION, measure_before, open_keeper, open_log, selection_of, tell
from samtune.run.prepare import Job, prepare
from samtune.run.publish import advise, evaluate_model, save_pages
from samtune.run.select import announce, report_selection, select_parameters, shapes_of
from samtune.run.train import train
from samtune.selection import load_selection, save_selection
from samtune.tuning import Counts


@dataclass(frozen=True)
class RunResult:
    """What `finetune` returns.

    Attributes:
        report: of the merged model on the test split, or on val if `eval.split` says so.
        before: of the untuned model on the same images; None where it has no head for these classes.
    """

    run_dir: Path
    report: AnyReport
    before: AnyReport | None
    counts: Counts
    fit: FitResult


def finetune(
    config: Config,
    *,
    run_dir: Path | None = None,
    overwrite: bool = False,
    resume: Path | None = None,
    command: str = "",
) -> RunResult:
    """Runs a config to its end: adapted model, measured before and after, files in the run folder.

    Args:
        run_dir: the run folder itself; None for `runs/NAME/TIME`.
        overwrite: empty a run folder that was used before.
        resume: the folder of a run to go on with, from its last checkpoint, to the same result bit for bit.
        command: what the user typed, for the report.

    Returns:
        The result; of several processes that train together only the first one returns, the others exit.

    Raises:
        SamtuneError: by kind, see `samtune.errors`.
    """
    if resume is not None:
        if run_dir is not None or overwrite:
            raise ConfigError("resume goes on in the folder that it names: neither run_dir nor overwrite goes with it.")
        check_settings(resume, config)
    if is_rank() and os.environ["RANK"] != "0":
        _help(config)
        raise SystemExit
    if resume is None:
        job = prepare(config)
        with new_run(config.run.dir / config.run.name, run_dir, overwrite=overwrite) as folder:
            return _run(job, folder, command)
    with locked(resume):
        job = prepare(config)
        check_inputs(resume, base_hash=job.base_hash, splits=job.loaders.splits)
        check_threads(resume, torch.get_num_threads())
        return _run(job, resume, command)


def _help(config: Config) -> None:
    """Takes part in the run of another process, which alone evaluates and writes: scores and trains with it."""
    job = prepare(config)
    folder = job.share.of_first(Path())
    keeper = open_keeper(job, folder)
    selection = selection_of(job, folder)
    try:
        with keeper.training(folder / SELECTION, int):
            train(job, selection, keeper, lambda _: None)
    except NonFiniteError:
        job.share.of_first(None)  # the first process still saves the best epoch: who starts them ends all with one
        raise


def _run(job: Job, folder: Path, command: str) -> RunResult:
    """Takes a job to its end in a locked folder; what is there of it already is not done again."""
    (folder / DONE).unlink(missing_ok=True)
    command = earlier_command(folder) or command
    save_splits(folder, job.loaders.splits)
    write_text(folder / "config.yaml", _resolved(job, command))
    job.share.of_first(folder)
    keeper = open_keeper(job, folder)
    with open_log(job, folder, keeper) as log:
        before = measure_before(job, folder, log)
        selection = selection_of(job, folder, log)
        counts = announce(job, selection)
        try:
            with keeper.training(folder / SELECTION, lambda: len(log.history)):
                result = train(job, selection, keeper, partial(tell, log))
        except NonFiniteError:
            merge_and_audit(job, selection, folder)  # the best epoch so far is not lost
            job.share.of_first(None)
            raise
        merge_and_audit(job, selection, folder)
        report, cost = evaluate_model(job, job.config.eval.split, keep=folder)
        split = "test" if job.config.eval.split == "test" else "report"  # of val, whose own events are the validations
        log.event({"split": split, "step": result.steps, **report.values, **cost})
        advice = advise(job, report, before, log.history)
        report.save(folder, before=before, trainable=counts.to_json(), advice=advice)
        save_pages(job, selection, report, log, best_epoch=result.best_epoch, folder=folder, command=command)
        log.artifacts(sorted(folder.iterdir()))
    return RunResult(folder, report, before, counts, result)


def select_only(
    config: Config,
    *,
    run_dir: Path | None = None,
    overwrite: bool = False,
    report: bool = False,
    against: Path | None = None,
) -> Path:
    """Scores and selects, writes `selection.safetensors`, and returns the run folder.

    Args:
        report: also write `selection.html`: distribution, noise, stability; four more passes over the images.
        against: a selection file to compare with on that page.
    """
    other = None if against is None else load_selection(against)
    job = prepare(config)
    with new_run(config.run.dir / config.run.name, run_dir, overwrite=overwrite) as folder:
        write_text(folder / "config.yaml", _resolved(job))
        page = folder / "selection.html"
        selection = report_selection(job, page, against=other) if report else select_parameters(job).selection
        announce(job, selection)
        save_selection(selection, folder / SELECTION, shapes_of(job.model))
    return folder


def _resolved(job: Job, command: str = "") -> str:
    """Returns the resolved config with a header that says what ran it and how; `load_config` reads it back."""
    packages = " ".join(
        f"{name}={version(name)}" for name in ("samtune", "torch", *job.task.packages, *job.model.packages)
    )
    ran = f"# {packages} python={platform.python_version()} threads={torch.get_num_threads()}"
    said = f"{COMMAND}{command}\n" if command else ""
    return f"{ran}\n# base_hash={job.base_hash} splits={job.loaders.splits.digest()}\n{said}{job.config.to_yaml()}"
