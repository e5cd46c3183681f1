"""The selection phase of a job: score or read scores, select, say what trains."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from samtune import console
from samtune.base.disk import disk_errors
from samtune.base.machine import forget_peak, peak_mib
from samtune.base.paths import find_path
from samtune.errors import CheckpointError, DataError
from samtune.files.layouts import selection_for
from samtune.insight.distribution import distribution, overlap
from samtune.insight.page import save_selection_report
from samtune.insight.stability import Stability, noise, stability
from samtune.models.backbone import Backbone
from samtune.run.checkpoints.keep import ScoreKeeper
from samtune.run.prepare import Job
from samtune.scoring.file import check_scores_file, load_scores, save_scores
from samtune.scoring.score import ScoreLoss, hash_batches, mean_loss, score, score_inputs
from samtune.selection import Needs, Selection, check_selection, load_selection, select
from samtune.tuning import Counts, count, count_by_block
from samtune.types import AnyBatch, Scores

logger = logging.getLogger(__name__)

INPUTS = "mean input"
"""What a score file of forward passes has in the place of a loss."""


@dataclass(frozen=True)
class Chosen:
    """A selection and what it took: its scoring pass, also where a file has the scores of it, and the choice.

    Attributes:
        seconds, memory_mib: the time, and how far the memory in use rose; None where a file does not say it.
    """

    selection: Selection
    seconds: float | None = None
    memory_mib: float | None = None


def select_parameters(job: Job, batches: list[AnyBatch] | None = None, *, keeper: ScoreKeeper | None = None) -> Chosen:
    """Scores if the selector needs it, on `batches` or the job's own, and selects; or reads `select.file`.

    Args:
        keeper: lets a scoring pass that was cut off go on.

    Raises:
        CheckpointError: a selection file of another base, or one that does not fit the model.
    """
    if job.config.select.file is None:
        return _chosen(job, None if job.needs is None else scores_of(job, job.needs, batches, keeper))
    file = find_path(job.config.select.file)
    selection = load_selection(file)
    base = selection.provenance.get("base_hash")
    if base != job.base_hash:
        mapped = selection_for(selection, job.base, job.base_hash)
        if mapped is not None:
            logger.info("%s is of the same base in SAM's other layout: its names are mapped", file)
            check_selection(mapped, job.model)
            return Chosen(mapped)
        raise CheckpointError(
            f"{file} was selected on another base (hash {str(base)[:12]}) than {job.model.name} as configured "
            f"({job.base_hash[:12]}). Set model.checkpoint to that base, or leave select.file empty to select anew."
        )
    check_selection(selection, job.model)
    logger.info("%s: selected by %s, nothing is scored", file, selection.provenance.get("method", "hand"))
    return Chosen(selection)


def _chosen(job: Job, scores: Scores | None) -> Chosen:
    began, loaded = time.monotonic(), forget_peak(job.model.device)
    selection = selection_from(job, scores)
    seconds, memory = time.monotonic() - began, max(0.0, peak_mib(job.model.device) - loaded)
    if scores is None:
        return Chosen(selection, seconds, memory)
    if scores.seconds is None or scores.memory_mib is None:
        return Chosen(selection)
    return Chosen(selection, scores.seconds + seconds, max(scores.memory_mib, memory))


def selection_from(job: Job, scores: Scores | None) -> Selection:
    """Selects with scores that are there already, and records where the selection came from."""
    config = job.config
    selection = select(
        job.model,
        scores,
        name=config.select.name,
        budget=config.select.budget,
        decoder=config.tune.trains_head,
        biases=config.tune.biases,
        exclude=config.tune.exclude,
        **config.select.options,
    )
    tune = json.dumps(config.tune.model_dump(mode="json", exclude={"base", "start"}))
    provenance = {"method": config.select.name, "options": json.dumps(config.select.options), "model": job.model.name}
    provenance |= {"base_hash": job.base_hash, "seed": str(config.run.seed), "tune": tune}
    if config.select.budget is not None:
        provenance["budget"] = str(config.select.budget)
    if scores is not None:
        provenance |= {"loss": scores.loss, "images_hash": scores.images_hash, "split": "train"}
    return replace(selection, provenance=provenance)


def report_selection(job: Job, path: Path, *, against: Selection | None = None) -> Selection:
    """Returns the selection and writes a page on it: where its entries lie, how far they are noise or chance of a draw.

    Costs four passes over the scoring images: the selection's own, one with another seed where the loss draws by it,
    and one on two halves for each seed. Scores of inputs have no noise. `against` is another selection to compare with.

    Raises:
        CheckpointError: `against` does not fit the model.
    """
    if against is not None:
        check_selection(against, job.model)
    scores = steady = None
    if (needs := job.needs) is None:
        selection = select_parameters(job).selection
    else:
        source = _smallest_subset(job, needs)
        scores = scores_of(job, replace(needs, squares=needs.of == "gradients"), source)
        selection = selection_from(job, scores)
        steady = _stability(job, needs, source, scores)
    save_selection_report(
        path,
        title=job.config.run.name,
        distribution=distribution(job.model, selection),
        overlap=None if against is None else overlap(job.model, selection, against),
        noise=noise(job.model, scores, selection) if scores and scores.squares and scores.batches > 1 else None,
        stability=steady,
        counts=count(job.model, selection).to_json(),
        provenance=selection.provenance,
    )
    return selection


def _stability(job: Job, needs: Needs, source: Any, scores: Scores) -> Stability | None:
    """Selects again by another seed, where the loss has one, and on halves; None for a single batch."""
    if len(source) < 2:
        advice = "Use more score.images or a smaller score.batch"
        logger.warning("one scoring batch can't be halved: no stability. %s", advice)
        return None
    seed = job.config.run.seed
    seeds = (seed, seed + 1) if needs.loss == "contrastive" and job.task.contrast_draws else (seed,)
    passes = 2 * len(seeds) - 1
    with console.progress("score again", passes * len(source)) as advance:
        return stability(
            job.model,
            source,
            scored=lambda images, draw: _score(job, needs, _counted(images, advance), seed=draw),
            choose=lambda found: selection_from(job, found),
            seeds=seeds,
            first=scores,
        )


def scores_of(job: Job, needs: Needs, batches: Any = None, keeper: ScoreKeeper | None = None) -> Scores:
    """Returns the scores of a pass: from `score.file` if it holds them, else computed, and written there.

    With `batches` to score on instead of the job's own, nothing is read or written.
    """
    config = job.config.score
    source, file = (_smallest_subset(job, needs), config.file) if batches is None else (batches, None)
    if file is not None and job.share.of_first(file.is_file()):
        scores = load_scores(file)
        said = _loss_of(job, needs, job.config.run.seed)[1]
        wanted = {"base_hash": job.base_hash, "loss": said, "images_hash": hash_batches(source)}
        check_scores_file(scores, per=needs.per, squares=needs.squares, **wanted)
        logger.info("scores of %d passes read from %s", scores.batches, file)
        return scores
    if file is not None:
        with disk_errors(file.parent):  # now, not after the pass
            file.parent.mkdir(parents=True, exist_ok=True)
    began, loaded = time.monotonic(), forget_peak(job.model.device)
    with console.progress("score", len(source)) as advance:
        ours: Any = {"keeper": keeper, "share": job.share}
        found = _score(job, needs, _counted(source, advance), seed=job.config.run.seed, **ours)
    seconds = time.monotonic() - began + (keeper.earlier if keeper else 0.0)
    scores = replace(found, seconds=seconds, memory_mib=max(0.0, peak_mib(job.model.device) - loaded))
    if file is not None and job.share.first:
        save_scores(scores, file)
    return scores


def _score(job: Job, needs: Needs, batches: Any, *, seed: int, **kept: Any) -> Scores:
    """Runs a scoring pass, of a loss drawn by a seed, and says what it was of."""
    loss, said = _loss_of(job, needs, seed)
    if loss is None:
        found = score_inputs(job.model, batches, **kept)
    else:
        found = score(job.model, batches, loss, per=needs.per, squares=needs.squares, **kept)
    return replace(found, loss=said, base_hash=job.base_hash)


def _loss_of(job: Job, needs: Needs, seed: int) -> tuple[ScoreLoss | None, str]:
    """Returns the loss of a pass, None for forward passes alone, and the text of all that its scores depend on."""
    return (None, INPUTS) if needs.of == "inputs" else job.task.scoring_loss(needs, seed)


def announce(job: Job, selection: Selection) -> Counts:
    """Prints what will train, per block and kind, and returns the counts."""
    counts = count(job.model, selection)
    amounts = {(block, kind): amount for block, kind, amount in count_by_block(job.model, selection)}
    kinds = sorted({kind for _, kind in amounts})
    blocks = list(dict.fromkeys(block for block, _ in amounts))
    table = [[block, *(f"{amounts.get((block, kind), 0):,}" for kind in kinds)] for block in blocks]
    table.append(["all", *(f"{sum(amounts.get((block, kind), 0) for block in blocks):,}" for kind in kinds)])
    method = selection.provenance["method"]
    title = f"{method}: {counts.total:,} trainable parameters, {counts.percent:.2f} % of the model"
    console.print_table(table, columns=["", *kinds], title=title)
    for note in job.task.notes(counts, job.model):
        logger.info("%s", note)
    return counts


def shapes_of(model: Backbone) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.net.state_dict().items()}


def _smallest_subset(job: Job, needs: Needs) -> Any:
    """Returns the loader of all scoring images, or of the random n-th of the smallest loss (GRFT, section 4.4.6)."""
    loader, parts = job.loaders.score, job.config.score.subsets
    if parts == 1:
        return loader
    images = len(loader.dataset)  # type: ignore[arg-type]
    if parts > images:
        raise DataError(f"score.subsets is {parts}, but there are {images} scoring images: that is the largest n.")
    seed = job.config.run.seed
    order = np.random.default_rng((seed, 2)).permutation(images)
    how: Any = {name: getattr(loader, name) for name in ("batch_size", "collate_fn", "num_workers", "worker_init_fn")}
    subsets = [DataLoader(Subset(loader.dataset, sorted(part)), **how) for part in np.array_split(order, parts)]
    losses = [mean_loss(job.model, part, job.task.scoring_loss(needs, seed)[0]) for part in subsets]
    if np.isnan(losses).all():
        raise DataError("score.subsets: the loss is undefined in every part. Use fewer parts, or another score.loss.")
    best = job.share.of_first(int(np.nanargmin(losses)))
    logger.info("subset %d of %d has the smallest loss: %.4f", best + 1, len(subsets), losses[best])
    return subsets[best]


def _counted(batches: Any, advance: Any) -> Iterator[AnyBatch]:
    for batch in batches:
        yield batch
        advance()
