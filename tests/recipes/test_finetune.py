"""The whole job on a dozen tiny pictures: what the run folder holds, and that it is true.

The pinned losses were made by
    python -m pytest -s tests/recipes/test_finetune.py -k pinned
on torch 2.15.0, CPU, fp32, one thread. They change when the data, the augmentation, the initialisation, the loss or
the order of random draws changes: make them again only when one of these was meant to change.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from descriptions import load_masks
from helpers import write_data
from safetensors.torch import load_file

from samtune.base.tensors import save_tensors, state_hash
from samtune.config.sections import Config
from samtune.data.frames import Collate
from samtune.data.pairs import find_pairs
from samtune.errors import CheckpointError, ConfigError
from samtune.files.audit import audit_files
from samtune.files.delta import apply_delta, undo_delta
from samtune.models.table import build_model
from samtune.run.dry import dry_run
from samtune.run.recipe import RunResult, finetune, select_only
from samtune.run.settings import load_config
from samtune.selection import load_selection
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.dataset import SegmentationDataset
from samtune.tasks.masks.evaluate import evaluate_file
from samtune.tasks.masks.splits import resolve_split

LOSSES = [1.39471, 1.40997, 1.26988, 1.18578, 1.16067, 1.09145, 0.95258, 0.91532, 0.82748, 0.64271, 0.55685, 0.59646]

PROOFS = ("merged logits equal tuned logits", "base + delta = merged model, and back")
SETTINGS = (
    "run.seed=7",
    "run.device=cpu",
    "model.name=sam_tiny",
    "model.image_size=64",
    "score.batch=2",
    "select.per_neuron=2",
    "train.batch=2",
    "train.steps=12",
    "train.lr=3e-3",
    "train.precision=fp32",
    "eval.overlays=1",
)


@dataclass(frozen=True)
class Job:
    """One finished run with its inputs and its log."""

    config: Config
    base: Path
    data: Path
    result: RunResult
    log: list[str]

    @property
    def folder(self) -> Path:
        return self.result.run_dir

    def history(self, split: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        return [event for event in events if event["split"] == split]


def settings(data: Path, base: Path, *more: str) -> Config:
    # a file of weights, not "random": with it a run does not depend on how a model is initialised
    return load_config("polyp.yaml", [*SETTINGS, f"data.dir={data}", f"model.checkpoint={base}", *more])


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("job")
    data = write_data(home / "data")
    base = home / "base.safetensors"
    torch.manual_seed(0)
    save_tensors(base, build_model("sam_tiny", checkpoint="random", image_size=64).net.state_dict(), {})
    kept, logger = Kept(), logging.getLogger("samtune")
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(home)
        config = settings(data, base, "track.mlflow=true", "track.experiment=recipe", "run.name=tiny")
        result = finetune(config, command="samtune finetune --config it.yaml")
    logger.removeHandler(kept)
    logger.setLevel(level)
    return Job(config, base, data, result, kept.lines)


def test_the_run_folder_holds_what_the_contract_names(job: Job) -> None:
    names = {path.name for path in job.folder.iterdir()}
    assert names == {
        ".samtune-run",
        "config.yaml",
        "selection.safetensors",
        "delta.safetensors",
        "merged.safetensors",
        "metrics.json",
        "per_image.csv",
        "history.jsonl",
        "report.html",
        "overlays",
        "before",
        "checkpoints",
        "tracking.json",
        "splits",
    }
    assert job.folder.parent == Path("runs/tiny")
    assert len(list((job.folder / "overlays").iterdir())) == 3  # best, median, worst


@pytest.fixture(autouse=True)
def where_the_job_ran(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run folder is relative to its working folder."""
    monkeypatch.chdir(job.data.parent)


def test_metrics_json(job: Job) -> None:
    metrics = json.loads((job.folder / "metrics.json").read_text())
    assert set(metrics) == {
        *("task", "split", "n_images", "mDice", "mIoU", "ci95", "definition", "metrics", "before", "gain", "trainable"),
        *("trivial", "prompts", "advice"),
    }
    assert (metrics["task"], metrics["split"], metrics["n_images"]) == ("segmentation", "test", 3)
    assert metrics["mDice"] == job.result.report.mDice
    assert metrics["before"] == {"mDice": job.result.before.mDice, "mIoU": job.result.before.mIoU}
    low, high = metrics["ci95"]["mDice"]
    assert 0 <= low <= metrics["mDice"] <= high <= 1
    counts = metrics["trainable"]
    names = ("selected", "bias", "norm", "decoder", "head", "added")
    assert set(counts) == {*names, "total", "percent"}
    assert counts["total"] == sum(counts[name] for name in names)
    tensors = [tensor for name, tensor in load_file(job.folder / "merged.safetensors").items()]
    assert 0 < counts["percent"] == pytest.approx(100 * counts["total"] / sum(t.numel() for t in tensors), rel=1e-3)


def test_what_speaks_against_the_result_is_said_everywhere(job: Job) -> None:
    metrics = json.loads((job.folder / "metrics.json").read_text())
    assert set(metrics["trivial"]) == {"otsu_bright", "otsu_dark", "all_foreground", "mean_mask"}
    assert set(metrics["trivial"]) <= set(metrics["definition"])
    assert metrics["trivial"]["otsu_bright"] > 0.8  # the objects of these pictures are bright
    compared, few = metrics["advice"]
    assert "the model is" in compared and "Otsu's threshold of brightness with what is bright" in compared
    assert few.startswith("3 images can't tell how far to trust mDice")
    assert compared in job.log and few in job.result.report.to_table().notes
    page = (job.folder / "report.html").read_text()
    assert "Before you rely on it" in page and "3 images can&#39;t tell" in page and "otsu_dark" in page


def test_per_image_csv(job: Job) -> None:
    with (job.folder / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == ["name", "dice", "iou", "precision", "recall", "truth_px", "pred_px"]
    assert [row["name"] for row in rows] == ["p09", "p10", "p11"]
    assert sum(float(row["dice"]) for row in rows) / 3 == pytest.approx(job.result.report.mDice)


def test_the_resolved_config_is_the_config(job: Job) -> None:
    path = job.folder / "config.yaml"
    assert load_config(path) == job.config
    header = path.read_text().splitlines()[:2]
    assert all(name in header[0] for name in ("samtune=", "torch=", "python="))
    splits = resolve_split(job.data, seed=7)
    assert header[1] == f"# base_hash={state_hash(load_file(job.base))} splits={splits.digest()}"


def test_the_history_tells_the_run(job: Job) -> None:
    assert [event["step"] for event in job.history("train")] == list(range(1, 13))
    assert [event["epoch"] for event in job.history("val")] == [1, 2, 3, 4]
    (before,), (test,) = job.history("before"), job.history("test")
    (chosen,) = job.history("select")
    assert chosen["step"] == 0 and 0 < chosen["seconds"] < 600 and 0 <= chosen["memory_mib"] < 4000
    assert (before["step"], before["mDice"]) == (0, job.result.before.mDice)
    assert (test["step"], test["mIoU"]) == (12, job.result.report.mIoU)
    best = max(event["mDice"] for event in job.history("val"))
    assert (job.result.fit.steps, job.result.fit.best_value) == (12, best)


def test_the_loss_curve_is_pinned(job: Job) -> None:
    losses = [event["loss"] for event in job.history("train")]
    print("\nLOSSES =", [round(loss, 5) for loss in losses])
    assert losses == pytest.approx(LOSSES, abs=1e-3)


def test_it_learns(job: Job) -> None:
    assert job.result.report.mDice > job.result.before.mDice + 0.2


def test_the_merged_model_loads_and_scores_as_the_report_says(job: Job) -> None:
    model, info = load_masks(job.folder / "merged.safetensors")
    assert (model.name, info.image_size, info.prompt, info.threshold) == ("sam_tiny", 64, "none", 0.5)
    assert info.base_hash == state_hash(load_file(job.base))
    report = evaluate_file(Evaluation(job.folder / "merged.safetensors", job.data, split="test", device="cpu"))
    assert report.rows == job.result.report.rows
    assert report.split == "test"


def test_evaluate_takes_the_test_part_or_all(job: Job, tmp_path: Path) -> None:
    merged = job.folder / "merged.safetensors"
    assert len(evaluate_file(Evaluation(merged, job.data, device="cpu")).rows) == 3
    everything = evaluate_file(Evaluation(merged, job.data, split="all", out=tmp_path / "e", device="cpu"))
    assert (everything.split, len(everything.rows)) == ("all", 12)
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["n_images"] == 12
    assert (tmp_path / "e" / "per_image.csv").is_file()


def test_evaluate_asks_which_part_where_there_is_no_test(job: Job, tmp_path: Path) -> None:
    for sub in ("images", "masks"):
        (tmp_path / "parts" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / "val" / sub).symlink_to(job.data / sub)
    merged = job.folder / "merged.safetensors"
    with pytest.raises(ConfigError, match=r"has parts but no test/. Choose one: --split val"):
        evaluate_file(Evaluation(merged, tmp_path / "parts", device="cpu"))
    assert evaluate_file(Evaluation(merged, tmp_path / "parts", split="val", device="cpu")).split == "val"


def test_base_and_delta_are_the_merged_model(job: Job, tmp_path: Path) -> None:
    apply_delta(job.base, job.folder / "delta.safetensors", tmp_path / "merged.safetensors")
    assert (tmp_path / "merged.safetensors").read_bytes() == (job.folder / "merged.safetensors").read_bytes()
    undo_delta(job.folder / "merged.safetensors", job.folder / "delta.safetensors", tmp_path / "base.safetensors")
    assert state_hash(load_file(tmp_path / "base.safetensors")) == state_hash(load_file(job.base))


def test_the_audit_holds_and_was_printed(job: Job) -> None:
    report = audit_files(job.base, job.folder / "merged.safetensors", job.folder / "selection.safetensors")
    assert report.ok
    assert [f"audit: {line}" for line in (*report.lines, *PROOFS)] == [
        line for line in job.log if line.startswith("audit: ")
    ]
    tuned = int(report.lines[1].split()[0].replace(",", ""))
    assert tuned > job.result.counts.selected


def test_selection_saw_training_images_only(job: Job) -> None:
    selection = load_selection(job.folder / "selection.safetensors")
    training = [pair for pair in find_pairs(job.data) if pair.name in {f"p{index:02d}" for index in range(6)}]
    size = job.config.model.image_size
    assert size is not None and len(training) == 6
    samples = list(SegmentationDataset(training, image_size=size))
    batches = [Collate(size)(samples[i : i + 2]) for i in (0, 2, 4)]  # score.batch=2
    pixels = b"".join(part.numpy().tobytes() for batch in batches for part in (batch.images, batch.masks))
    seen = hashlib.sha256(pixels).hexdigest()
    assert selection.provenance == {
        "method": "gps",
        "options": '{"per_neuron": 2, "level": "neuron", "criterion": "gradient", "seed": 0}',
        "tune": '{"biases": null, "exclude": [], "decoder": true}',
        "model": "sam_tiny",
        "base_hash": state_hash(load_file(job.base)),
        "seed": "7",
        "loss": "pixel_contrastive cells=128 temperature=0.1 seed=7 batch=2",
        "images_hash": seen,
        "split": "train",
    }
    assert sum(len(indices) for indices in selection.entries.values()) == job.result.counts.selected


def test_the_report_shows_the_command_and_the_numbers(job: Job) -> None:
    page = (job.folder / "report.html").read_text()
    assert "samtune finetune --config it.yaml" in page
    assert "sam_tiny, 64 px" in page
    assert page.count("<img") == 3


def test_mlflow_has_the_run(job: Job) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("recipe").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny gps")
    assert run.data.params["select.per_neuron"] == "2"
    assert run.data.params["train.lr"] == "0.003"
    expected = {"train/loss", "val/mDice", "val/mIoU", "test/mDice", "test/mIoU"}
    assert expected <= set(run.data.metrics)
    assert run.data.metrics["test/mDice"] == job.result.report.mDice
    stored = {item.path for item in client.list_artifacts(run.info.run_id)}
    kept = {path.name for path in job.folder.iterdir() if not path.name.startswith(".")}
    # weights are not copied to a store on the same disk
    assert stored == kept - {"history.jsonl", "tracking.json", "checkpoints", "merged.safetensors"}
    assert run.data.tags["file/merged.safetensors"].startswith(str(job.folder.absolute() / "merged.safetensors"))
    assert (run.data.tags["samtune.method"], run.data.tags["samtune.model"]) == ("gps", "sam_tiny")
    (inputs,) = run.inputs.dataset_inputs
    assert inputs.dataset.source == str(job.data)


def test_the_same_seed_gives_the_same_run(job: Job, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what ran before must not matter
    again = finetune(settings(job.data, job.base, "track.mlflow=false"), run_dir=tmp_path / "again")
    second = Job(job.config, job.base, job.data, again, [])
    for split in ("before", "train", "val", "test"):
        for ours, theirs in zip(second.history(split), job.history(split), strict=True):
            for event in (ours, theirs):
                event.pop("time")
                for measured in ("images_per_s", "seconds", "memory_mib"):
                    event.pop(measured, None)
            assert ours == theirs
    assert (again.run_dir / "merged.safetensors").read_bytes() == (job.folder / "merged.safetensors").read_bytes()


def test_another_seed_gives_another_run(job: Job, tmp_path: Path) -> None:
    config = settings(job.data, job.base, "track.mlflow=false", "run.seed=8", "train.steps=1")
    other = Job(config, job.base, job.data, finetune(config, run_dir=tmp_path / "other"), [])
    assert other.history("train")[0]["loss"] != job.history("train")[0]["loss"]


@pytest.mark.parametrize(
    "method",
    [
        ("select={name: linear}",),
        ("select={name: full}", "train.checkpointing=true"),
        ("tune.decoder=false", "tune.biases=false", "score.loss=task"),
        ("data.prompt=box", "train.precision=bf16", "train.accumulate=2"),
        ("data.prompt=point", "train.optimizer=adam", "train.clip=null"),
    ],
    ids=lambda method: " ".join(method),
)
def test_other_settings_run_to_the_end(job: Job, tmp_path: Path, method: tuple[str, ...]) -> None:
    config = settings(job.data, job.base, "track.mlflow=false", "train.steps=2", "eval.overlays=0", *method)
    result = finetune(config, run_dir=tmp_path / "r")
    assert result.fit.steps == 2
    report = evaluate_file(Evaluation(tmp_path / "r" / "merged.safetensors", job.data, split="test", device="cpu"))
    assert report.rows == result.report.rows
    trained = {name for name, count in result.counts.to_json().items() if count} - {"total", "percent"}
    expected = {"linear": {"decoder"}, "full": {"selected", "bias", "norm", "decoder"}}
    default = {"selected"} if "tune.decoder=false" in method else {"selected", "bias", "decoder"}
    assert trained == expected.get(config.select.name, default)


def test_select_only_writes_the_same_selection(job: Job, tmp_path: Path) -> None:
    folder = select_only(settings(job.data, job.base), run_dir=tmp_path / "s")
    assert {path.name for path in folder.iterdir()} == {".samtune-run", "config.yaml", "selection.safetensors"}
    ours, theirs = (load_selection(f / "selection.safetensors") for f in (folder, job.folder))
    assert ours.provenance == theirs.provenance
    assert all(torch.equal(indices, theirs.entries[name]) for name, indices in ours.entries.items())


def test_a_dry_run_estimates_and_writes_nothing(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "cwd")
    estimate = dry_run(settings(job.data, job.base, "train.steps=null", "train.epochs=5"))
    assert estimate.steps == 15
    assert estimate.counts.total == job.result.counts.total
    assert estimate.step_seconds > 0
    assert estimate.train_seconds == 15 * estimate.step_seconds
    assert 100 < estimate.peak_mib < 20_000
    assert "15 steps, about" in str(estimate)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_moved_weight_fails_the_run(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.run import train

    real = train.fit

    def fit(model: Any, *rest: Any, **options: Any) -> Any:
        result = real(model, *rest, **options)
        model.net.get_parameter("image_encoder.pos_embed").data[0, 0, 0, 0] += 1
        return result

    monkeypatch.setattr(train, "fit", fit)
    with pytest.raises(CheckpointError, match=r"1 tensors moved.*pos_embed: 1 entries changed outside"):
        finetune(settings(job.data, job.base, "track.mlflow=false", "train.steps=1"), run_dir=tmp_path / "r")
    assert (tmp_path / "r" / "merged.safetensors").exists()  # for whoever looks into it
