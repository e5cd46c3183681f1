"""The whole job, top to bottom: the only file that knows the order.

`finetune` = prepare, evaluate before, select, train, merge and audit, evaluate, report.
"""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from samtune.base.disk import open_run_folder, write_text
from samtune.base.machine import peak_mib
from samtune.base.tracking import RunLog
from samtune.config.sections import Config
from samtune.data.splits import save_splits
from samtune.errors import NonFiniteError
from samtune.metrics.report import AnyReport
from samtune.run.fit import Event, FitResult, fit, total_steps
from samtune.run.merge import merge_and_audit
from samtune.run.prepare import Job, prepare
from samtune.run.publish import evaluate_model, save_pages
from samtune.run.select import announce, report_selection, select_parameters, shapes_of
from samtune.run.train import attach_selection, objective_of, train
from samtune.selection import load_selection, save_selection
from samtune.tuning import Counts, count


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


def finetune(config: Config, *, run_dir: Path | None = None, overwrite: bool = False, command: str = "") -> RunResult:
    """Runs a config to its end: adapted model, measured before and after, files in the run folder.

    Args:
        run_dir: the run folder itself; None for `runs/NAME/TIME`.
        overwrite: empty a run folder that was used before.
        command: what the user typed, for the report.

    Raises:
        SamtuneError: by kind, see `samtune.errors`.
    """
    job = prepare(config)
    folder = open_run_folder(config.run.dir / config.run.name, run_dir, overwrite=overwrite)
    write_text(folder / "config.yaml", _resolved(config, job))
    save_splits(folder, job.loaders.splits)
    name, params = config.run.name, config.model_dump(mode="json")
    with RunLog(folder, run_name=name, params=params, **config.track.model_dump()) as log:
        before = None
        if job.task.measures_before:
            before, _ = evaluate_model(job, "before")
            before.save(folder / "before")
            log.event({"split": "before", "step": 0, **before.values})
        selection = select_parameters(job)
        counts = announce(job, selection)
        save_selection(selection, folder / "selection.safetensors", shapes_of(job.model))
        try:
            result = train(job, selection, log)
        except NonFiniteError:
            merge_and_audit(job, selection, folder)  # the best epoch so far is not lost
            raise
        merge_and_audit(job, selection, folder)
        report, cost = evaluate_model(job, config.eval.split, keep=folder)
        split = "test" if config.eval.split == "test" else "report"  # of val, whose own events are the validations
        log.event({"split": split, "step": result.steps, **report.values, **cost})
        report.save(folder, before=before, trainable=counts.to_json())
        save_pages(job, selection, report, log, best_epoch=result.best_epoch, folder=folder, command=command)
        log.artifacts(sorted(p for p in folder.iterdir() if p.suffix != ".jsonl"))
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
    folder = open_run_folder(config.run.dir / config.run.name, run_dir, overwrite=overwrite)
    write_text(folder / "config.yaml", _resolved(config, job))
    page = folder / "selection.html"
    selection = report_selection(job, page, against=other) if report else select_parameters(job)
    announce(job, selection)
    save_selection(selection, folder / "selection.safetensors", shapes_of(job.model))
    return folder


@dataclass(frozen=True)
class DryRun:
    """What two steps of a job showed.

    Attributes:
        steps: optimizer steps of the whole job.
        train_seconds: estimate of the training, without scoring, validation and evaluation.
        peak_mib: the largest memory so far: of the GPU if there is one, else of the process.
    """

    counts: Counts
    step_seconds: float
    steps: int
    train_seconds: float
    peak_mib: float

    def __str__(self) -> str:
        return (
            f"trainable    {self.counts.total:,} ({self.counts.percent:.2f} % of the model)\n"
            f"step         {self.step_seconds:.2f} s\n"
            f"training     {self.steps:,} steps, about {self.train_seconds / 60:.1f} min without evaluation\n"
            f"peak memory  {self.peak_mib:,.0f} MiB"
        )


def dry_run(config: Config) -> DryRun:
    """Scores on one batch, selects, and trains two steps; writes nothing."""
    job = prepare(config)
    selection = select_parameters(job, batches=[next(iter(job.loaders.score))])
    counts = count(job.model, selection)
    trainable = attach_selection(job, selection)
    events: list[Event] = []
    fit(
        job.task.network(job.model, selection, base_hash=job.base_hash, autocast=job.autocast),
        trainable,
        job.loaders,
        fabric=job.fabric,
        objective=objective_of(job, trainable),
        optimisation=config.train.model_copy(update={"epochs": 2, "steps": 2}),
        validate=None,
        on_event=events.append,
    )
    steps = total_steps(config.train, len(job.loaders.train))
    step_seconds = config.train.batch * config.train.accumulate / events[-1]["images_per_s"]
    return DryRun(counts, step_seconds, steps, steps * step_seconds, peak_mib(job.model.device))


def _resolved(config: Config, job: Job) -> str:
    """Returns the resolved config with a header that says what ran it; `load_config` reads it back."""
    packages = " ".join(f"{name}={version(name)}" for name in ("samtune", "torch", *job.task.packages))
    ran = f"# {packages} python={platform.python_version()}"
    return f"{ran}\n# base_hash={job.base_hash} splits={job.loaders.splits.digest()}\n{config.to_yaml()}"
