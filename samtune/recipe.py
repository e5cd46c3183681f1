"""The whole job, top to bottom: the only file that knows the order.

`finetune` = prepare, score, select, attach, fit, audit and merge, evaluate, report.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor

from samtune import artifacts, console
from samtune.config import Config
from samtune.data import (
    Collate,
    Loaders,
    Pair,
    SegmentationDataset,
    build_data,
    check_pairs,
    find_pairs,
    resolve_split,
)
from samtune.data.pairs import read_image
from samtune.errors import CheckpointError, ConfigError, DiskError, RunFolderError
from samtune.evaluation import DEFAULT_METRICS, Report, evaluate, predict_batch
from samtune.losses import LOSSES
from samtune.models import RANDOM, SamModel, build_model, upsample_logits
from samtune.models.merged import MergedInfo, load_merged, save_merged
from samtune.overlays import pick_cases, save_overlays
from samtune.paths import find_path
from samtune.report import save_report
from samtune.scoring import contrastive_loss, score, task_loss
from samtune.selection import SELECTORS, Selection, save_selection, select
from samtune.tensorfile import state_hash
from samtune.tracking import RunLog
from samtune.training import Event, FitResult, Optimisation, fit
from samtune.tuning import Counts, attach, count, count_by_block, merge
from samtune.types import Batch

logger = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision


@dataclass(frozen=True)
class RunResult:
    """What `finetune` returns.

    Attributes:
        run_dir: the run folder.
        report: of the merged model on the test split.
        before: of the untuned model on the same images.
        counts: what was trained.
        fit: steps, best epoch, seconds.
    """

    run_dir: Path
    report: Report
    before: Report
    counts: Counts
    fit: FitResult


def finetune(
    config: Config, *, run_dir: Path | None = None, overwrite: bool = False, command: str = ""
) -> RunResult:
    """Runs a config to its end: adapted model, measured before and after, files in the run folder.

    Args:
        config: of `load_config`.
        run_dir: the run folder itself; None for `runs/NAME/TIME`.
        overwrite: empty a run folder that was used before.
        command: what the user typed, for the report.

    Returns:
        Folder, reports and counts.

    Raises:
        SamtuneError: by kind, see `samtune.errors`.
    """
    job = _prepare(config)
    folder = _run_folder(config, run_dir, overwrite=overwrite)
    (folder / "config.yaml").write_text(_resolved(config, job), encoding="utf-8")
    with _run_log(config, folder) as log:
        before = _evaluate(job, "before")
        log.event({"split": "before", "step": 0, "mDice": before.mDice, "mIoU": before.mIoU})
        selection = _select(job)
        counts = _announce(job, selection)
        save_selection(selection, folder / "selection.safetensors", _shapes(job.model))
        result = _fit(job, selection, log)
        _merge(job, selection, folder)
        report = _evaluate(job, "test")
        log.event({"split": "test", "step": result.steps, "mDice": report.mDice, "mIoU": report.mIoU})
        report.save(folder, before=before, trainable=counts.to_json())
        _report(job, report, log, folder, command)
        log.artifacts(sorted(p for p in folder.iterdir() if p.suffix != ".jsonl"))
    return RunResult(folder, report, before, counts, result)


def select_only(config: Config, *, run_dir: Path | None = None, overwrite: bool = False) -> Path:
    """Scores and selects, writes `selection.safetensors`, and returns the run folder."""
    job = _prepare(config)
    folder = _run_folder(config, run_dir, overwrite=overwrite)
    (folder / "config.yaml").write_text(_resolved(config, job), encoding="utf-8")
    selection = _select(job)
    _announce(job, selection)
    save_selection(selection, folder / "selection.safetensors", _shapes(job.model))
    return folder


@dataclass(frozen=True)
class DryRun:
    """What two steps of a job showed.

    Attributes:
        counts: what would train.
        step_seconds: of the second step.
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
    job = _prepare(config)
    selection = _select(job, batches=[next(iter(job.loaders.score))])
    trainable = attach(job.model, selection)
    seconds: list[float] = []

    def on_event(event: Event) -> None:
        if event["split"] == "train":
            seconds.append(len_step / event["images_per_s"])

    len_step = config.train.batch * config.train.accumulate
    no_validation = Report(rows=(), split="val", definition={})
    fit(
        job.model,
        trainable,
        job.loaders,
        fabric=job.fabric,
        loss=_loss(config),
        optimisation=Optimisation(**{**_train_options(config), "epochs": 1, "steps": 2}),
        validate=lambda: no_validation,
        on_event=on_event,
    )
    steps = min(config.train.steps or 10**9, config.train.epochs * -(-len(job.loaders.train) // config.train.accumulate))
    return DryRun(count(job.model, selection), seconds[-1], steps, steps * seconds[-1], _peak_mib(job.model.device))


def evaluate_checkpoint(
    checkpoint: Path,
    data_dir: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    split: str = "auto",
    metrics: tuple[str, ...] = (),
) -> Report:
    """Measures a merged file on a folder of images and masks.

    Args:
        checkpoint: `merged.safetensors`.
        data_dir: folder with `images/` and `masks/`, or with parts.
        out: folder for `metrics.json` and `per_image.csv`, or None.
        device: auto, cpu, cuda or mps.
        split: train, val or test; all; auto: the test part if the folder has parts, else all.
        metrics: names beside the default ones.
    """
    model, info = load_merged(checkpoint, device=_device(device))
    pairs, name = _pairs_of(data_dir, split)
    check_pairs(pairs)
    dataset = SegmentationDataset(pairs, image_size=info.image_size, prompt=info.prompt)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, collate_fn=Collate(info.image_size))
    with console.progress(f"evaluate {name}", len(loader)) as advance:
        report = evaluate(
            model, loader, metrics=(*DEFAULT_METRICS, *metrics), split=name, on_batch=lambda *_: advance()
        )
    if out is not None:
        with _disk_errors(out):
            report.save(out)
    return report


@dataclass(frozen=True)
class _Job:
    """What the phases of a run share."""

    config: Config
    fabric: Fabric
    model: SamModel
    base: dict[str, Tensor]
    base_hash: str
    loaders: Loaders
    autocast: torch.dtype | None


def _prepare(config: Config) -> _Job:
    """Builds device, model and data; everything that can be wrong with them shows here."""
    seed_everything(config.run.seed, verbose=False)
    device = _device(config.run.device)
    bf16 = _use_bf16(config.train.precision, device)
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if bf16 else "32-true")
    checkpoint = config.model.checkpoint
    if checkpoint is not None and str(checkpoint) != RANDOM:
        checkpoint = find_path(checkpoint)
    model = build_model(config.model.name, checkpoint=_text(checkpoint), image_size=config.model.image_size)
    model.checkpointing = config.train.checkpointing
    data = config.data
    loaders = build_data(
        find_path(data.dir),
        image_size=model.image_size,
        batch=config.train.batch,
        split=data.split,
        prompt=data.prompt,
        seed=config.run.seed,
        workers=data.workers,
        augment=data.augment,
        cache=data.cache,
        score_images=config.score.images,
        score_batch=config.score.batch,
        train=data.train,
        val=data.val,
        test=data.test,
    )
    logger.info(
        "%s at %d px on %s, %s; %d train, %d val, %d test images",
        model.name,
        model.image_size,
        device,
        "bf16" if bf16 else "fp32",
        *(len(part) for part in (loaders.splits.train, loaders.splits.val, loaders.splits.test)),
    )
    model.to(fabric.device)
    base = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return _Job(config, fabric, model, base, state_hash(base), loaders, torch.bfloat16 if bf16 else None)


def _select(job: _Job, batches: list[Batch] | None = None) -> Selection:
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


def _announce(job: _Job, selection: Selection) -> Counts:
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


def _fit(job: _Job, selection: Selection, log: RunLog) -> FitResult:
    """Attaches the selection and trains it."""
    config = job.config
    trainable = attach(job.model, selection)
    options = Optimisation(**_train_options(config))
    per_epoch = -(-len(job.loaders.train) // config.train.accumulate)
    total = min(config.train.epochs * per_epoch, config.train.steps or 10**9)
    with console.progress("train", total) as advance:
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
            loss=_loss(config),
            optimisation=options,
            validate=lambda: evaluate(
                job.model, job.loaders.val, metrics=(), split="val", autocast_dtype=job.autocast
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


def _merge(job: _Job, selection: Selection, folder: Path) -> None:
    """Merges, proves that the merge is true, and writes merged model and delta.

    Raises:
        CheckpointError: an unselected entry moved, or merged and tuned logits differ; a bug of ours.
    """
    batch = next(iter(job.loaders.val)).to(job.model.device)
    with torch.no_grad():
        tuned = job.model.eval()(batch)
        merged = merge(job.model)(batch)
    if not torch.equal(tuned, merged):
        worst = float((tuned - merged).abs().max())
        raise CheckpointError(f"merged logits differ from tuned logits by up to {worst:.3g}: please report this bug.")
    state = {name: tensor.detach().cpu() for name, tensor in job.model.state_dict().items()}
    audit = artifacts.audit(job.base, state, selection)
    for line in (*audit.lines, "merged logits equal tuned logits"):
        logger.info("audit: %s", line)
    if not audit.ok:
        raise CheckpointError("the audit failed: unselected weights moved; please report this bug.")
    info = MergedInfo(
        model=job.model.name,
        image_size=job.model.image_size,
        prompt=job.config.data.prompt,
        threshold=0.5,
        base_hash=job.base_hash,
    )
    with _disk_errors(folder):
        save_merged(folder / "merged.safetensors", job.model, info)
        artifacts.save_delta(
            folder / "delta.safetensors",
            base=job.base,
            merged=state,
            selection=selection,
            metadata=info.to_metadata(),
        )


def _evaluate(job: _Job, name: str) -> Report:
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


def _report(job: _Job, report: Report, log: RunLog, folder: Path, command: str) -> None:
    """Draws the overlays of best, median and worst cases and writes `report.html`."""
    cases = pick_cases(report, each=job.config.eval.overlays) if job.config.eval.overlays else []
    files = save_overlays(folder / "overlays", _cases(job, [name for _, name in cases]))
    dice = {row.name: row.dice for row in report.rows}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = job.config
    save_report(
        folder / "report.html",
        title=config.run.name,
        metrics=metrics,
        history=log.history,
        counts=metrics["trainable"],
        overlays=[(f"{label}: {name}, Dice {dice[name]:.3f}", f) for (label, name), f in zip(cases, files, strict=True)],
        command=command or f"samtune finetune --config {folder / 'config.yaml'}",
        config_yaml=(folder / "config.yaml").read_text(encoding="utf-8"),
        facts={
            "Model": f"{job.model.name}, {job.model.image_size} px",
            "Method": " ".join([config.select.name, *(f"{k}={v}" for k, v in config.select.options.items())]),
            "Data": str(config.data.dir),
            "Prompt": config.data.prompt,
        },
    )


def _cases(job: _Job, names: list[str]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields (name, image, truth, prediction) of test items by name, by the one prediction path."""
    dataset = job.loaders.test.dataset
    assert isinstance(dataset, SegmentationDataset)
    samples = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.name in names:
            samples[sample.name] = sample
    images = {pair.name: pair.image for pair in job.loaders.splits.test}
    job.model.eval()
    for name in names:
        batch = Collate(job.model.image_size)([samples[name]]).to(job.model.device)
        (prediction,) = predict_batch(job.model, batch, sizes_original=[samples[name].truth.shape])
        image = read_image(images[name.rpartition("#")[0] or name])
        yield name, image, samples[name].truth, prediction.mask


def _run_folder(config: Config, run_dir: Path | None, *, overwrite: bool) -> Path:
    """Makes the run folder.

    Raises:
        RunFolderError: it holds an earlier run.
        DiskError: it can't be made or written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(run_dir) if run_dir is not None else config.run.dir / config.run.name / stamp
    with _disk_errors(folder):
        if run_dir is None:
            number = 1
            while folder.exists():
                number += 1
                folder = folder.with_name(f"{stamp}-{number}")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise RunFolderError(
                    f"run folder {folder} holds an earlier run. Choose another --run-dir, or --overwrite it."
                )
            if not (folder / "config.yaml").exists():
                raise RunFolderError(f"{folder} is not empty and no run folder; it is not emptied. Choose another.")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    return folder


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `DiskError`."""
    try:
        yield
    except OSError as err:
        raise DiskError(f"can't write to {folder}: {err.strerror or err}. Choose a writable folder.") from err


def _run_log(config: Config, folder: Path) -> RunLog:
    return RunLog(
        folder,
        mlflow=config.track.mlflow,
        experiment=config.track.experiment,
        run_name=config.run.name,
        params=config.model_dump(mode="json"),
    )


def _resolved(config: Config, job: _Job) -> str:
    """Returns the resolved config with a header that says what ran it; `load_config` reads it back."""
    packages = " ".join(f"{name}={version(name)}" for name in ("samtune", "torch", "segment-anything", "monai"))
    header = [f"# {packages} python={platform.python_version()}", f"# base_hash={job.base_hash}"]
    return "\n".join([*header, config.to_yaml()])


def _pairs_of(data_dir: Path, split: str) -> tuple[list[Pair], str]:
    """Returns the pairs of a part of a folder and the part's name."""
    has_parts = any((data_dir / part).is_dir() for part in ("train", "val", "test"))
    if split == "auto":
        split = "test" if (data_dir / "test").is_dir() else "all"
        if has_parts and split == "all":
            raise ConfigError(f"{data_dir} has parts but no test/. Choose one: --split val, or --data {data_dir}/val.")
    if split == "all":
        return find_pairs(data_dir), "all"
    if has_parts:
        return find_pairs(data_dir / split), split
    return getattr(resolve_split(data_dir), split), split


def _device(name: str) -> str:
    """Resolves "auto" and refuses a device that is not there.

    Raises:
        ConfigError: naming the devices that are there.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there.append("cuda")
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return there[-1]
    if name not in there:
        raise ConfigError(f"run.device is {name!r}, which this machine does not have. There is: {', '.join(there)}.")
    return name


def _use_bf16(precision: str, device: str) -> bool:
    """Says whether to train in bf16: "auto" does where the processor multiplies bf16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _train_options(config: Config) -> dict[str, Any]:
    names = Optimisation.__dataclass_fields__
    return {name: value for name, value in config.train.model_dump().items() if name in names}


def _loss(config: Config) -> Any:
    options = config.loss.model_dump()
    function = LOSSES[options.pop("name")]
    return lambda logits, batch: function(logits, batch, **options)


def _without_gradient(model: SamModel) -> int:
    """Counts decoder parameters that mask token 0 does not depend on: IoU head, other tokens' hypernetworks."""
    decoder = model.mask_decoder
    idle = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
    return sum(p.numel() for module in idle for p in module.parameters())


def _counted(batches: Any, advance: Any) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance()


def _shapes(model: SamModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
