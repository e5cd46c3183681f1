"""What would a job cost? Two steps of it show that, and nothing is written."""

from dataclasses import dataclass
from typing import Any

from samtune.base.machine import peak_mib
from samtune.config.sections import Config
from samtune.run.fit import Event, Watch, fit, total_steps
from samtune.run.memory import StepMemory, step_memory
from samtune.run.prepare import prepare
from samtune.run.select import select_parameters
from samtune.run.train import attach_selection, objective_of
from samtune.tuning import Counts, count


@dataclass(frozen=True)
class DryRun:
    """What two steps of a job showed.

    Attributes:
        steps: optimizer steps of the whole job.
        train_seconds: estimate of the training, without scoring, validation and evaluation.
        peak_mib: the largest memory so far: of the GPU if there is one, else of the process.
        memory: what a step would take of a GPU's memory.
    """

    counts: Counts
    step_seconds: float
    steps: int
    train_seconds: float
    peak_mib: float
    memory: StepMemory

    def __str__(self) -> str:
        return (
            f"trainable    {self.counts.total:,} ({self.counts.percent:.2f} % of the model)\n"
            f"step         {self.step_seconds:.2f} s\n"
            f"training     {self.steps:,} steps, about {self.train_seconds / 60:.1f} min without evaluation\n"
            f"peak memory  {self.peak_mib:,.0f} MiB\n"
            f"on a GPU     about {self.memory}"
        )


def dry_run(config: Config) -> DryRun:
    """Scores on one batch, selects, and trains two steps; writes nothing."""
    job = prepare(config)
    selection = select_parameters(job, batches=[next(iter(job.loaders.score))]).selection
    counts = count(job.model, selection)
    trainable = attach_selection(job, selection)
    network = job.task.network(job.model, selection, base_hash=job.base_hash, autocast=job.autocast)
    objective, events = objective_of(job, trainable), list[Event]()
    batch = next(iter(job.loaders.train)).to(job.model.device)

    def forward() -> Any:
        with job.fabric.autocast():
            return objective.loss(network(batch), batch)

    network.train()
    memory = step_memory(job.model, trainable, forward, images=len(batch), ema=config.train.ema is not None)
    plan = config.train.model_copy(update={"epochs": 2, "steps": 2})
    watch = Watch(events.append)
    fit(network, trainable, job.loaders, fabric=job.fabric, objective=objective, optimisation=plan, watch=watch)
    steps = total_steps(config.train, len(job.loaders.train))
    step_seconds = config.train.images * config.train.accumulate / events[-1]["images_per_s"]
    return DryRun(counts, step_seconds, steps, steps * step_seconds, peak_mib(job.model.device), memory)
