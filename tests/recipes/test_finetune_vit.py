"""The whole classification job on a few tiny pictures: what the run folder holds, and that it is true."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from class_trees import write_class_folders, write_vtab
from descriptions import load_classes
from helpers import RunCommand
from safetensors.torch import load_file

from samtune.base.tensors import save_tensors
from samtune.config.sections import Config
from samtune.data.pictures import read_image
from samtune.errors import CheckpointError
from samtune.files.audit import audit_files
from samtune.files.delta import apply_delta, undo_delta
from samtune.files.export.pth import export_pth
from samtune.models.timm.model import build_classifier
from samtune.run.dry import dry_run
from samtune.run.prepare import prepare
from samtune.run.recipe import RunResult, finetune, select_only
from samtune.run.settings import load_config
from samtune.tasks.classes.evaluate import evaluate_classifier
from samtune.tasks.classes.predict import ClassPredictor, predict_class_files
from samtune.tasks.classes.report import ClassReport
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.predict import Prediction
from samtune.tasks.table import task_of_file
from samtune.types import LabelledBatch

ARCHITECTURE = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEXT = f"""
task: classification
run: {{name: tiny, seed: 7, device: cpu}}
model: {{name: vit_tiny_patch16_224, checkpoint: BASE, image_size: 32, options: {json.dumps(ARCHITECTURE)}}}
data: {{dir: DATA}}
score: {{batch: 4}}
train: {{epochs: 5, lr: 3.0e-3, batch: 4, precision: fp32}}
track: {{mlflow: false}}
"""


@dataclass(frozen=True)
class Job:
    """One finished run with its inputs."""

    file: Path
    base: Path
    data: Path
    result: RunResult

    @property
    def folder(self) -> Path:
        return self.result.run_dir

    def history(self, split: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        return [event for event in events if event["split"] == split]

    def settings(self, *more: str) -> Config:
        return load_config(self.file, more)


def write_job(home: Path) -> tuple[Path, Path, Path]:
    """Writes pictures, weights without a head for them, and a config; returns the three paths."""
    data, base, file = home / "data", home / "base.safetensors", home / "job.yaml"
    write_class_folders(data, classes=3, train=6, val=3, test=4, size=40)
    backbone = build_classifier(
        "vit_tiny_patch16_224", classes=11, checkpoint="random", image_size=32, seed=3, **ARCHITECTURE
    )
    save_tensors(base, backbone.net.state_dict(), {})
    file.write_text(TEXT.replace("BASE", str(base)).replace("DATA", str(data)))
    return data, base, file


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("vit")
    data, base, file = write_job(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(home)
        config = load_config(file, ["track.mlflow=true", "track.experiment=classes"])
        return Job(file, base, data, finetune(config, run_dir=home / "run", command="samtune finetune"))


def test_the_run_folder_holds_what_the_contract_names(job: Job) -> None:
    names = {path.name for path in job.folder.iterdir()}
    assert names >= {
        "config.yaml", "selection.safetensors", "delta.safetensors", "merged.safetensors", "metrics.json",
        "per_image.csv", "history.jsonl", "report.html", "confusion.png", "features.safetensors", "splits",
    }  # fmt: skip
    assert load_config(job.folder / "config.yaml") == job.settings("track.mlflow=true", "track.experiment=classes")


def test_the_numbers_derive_from_the_rows(job: Job) -> None:
    metrics = json.loads((job.folder / "metrics.json").read_text())
    with (job.folder / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (metrics["n_images"], len(rows), metrics["split"], metrics["before"]) == (12, 12, "test", None)
    assert metrics["top1"] == pytest.approx(sum(row["label"] == row["predicted"] for row in rows) / 12)
    assert metrics["top1"] > 0.6  # of three classes that differ by colour
    assert metrics["trivial"] == {"most_frequent": pytest.approx(1 / 3)} and "most_frequent" in metrics["definition"]
    assert metrics["trainable"]["head"] == 3 * 32 + 3
    assert metrics["trainable"]["total"] == sum(
        metrics["trainable"][kind] for kind in ("selected", "bias", "norm", "decoder", "head", "added")
    )


def test_the_history_tells_the_run(job: Job) -> None:
    assert [event["step"] for event in job.history("train")] == list(range(1, 26))  # 18 images in batches of 4
    assert [event["epoch"] for event in job.history("val")] == [1, 2, 3, 4, 5]
    assert set(job.history("val")[0]) >= {"top1", "mean_per_class"}
    assert not job.history("before")  # a new head has nothing to say
    (test,) = job.history("test")
    assert test["top1"] == job.result.report.values["top1"]
    assert test["seconds"] > 0
    best = max(event["top1"] for event in job.history("val"))
    assert job.result.fit.best_value == best


def test_mlflow_has_the_numbers(job: Job) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{job.file.parent / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("classes")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["test/top1"] == job.result.report.values["top1"]
    assert run.data.params["model.name"] == "vit_tiny_patch16_224"


def test_evaluate_repeats_the_run_and_predict_agrees(job: Job, tmp_path: Path) -> None:
    file = job.folder / "merged.safetensors"
    again = evaluate_classifier(Evaluation(file, job.data, out=tmp_path / "again"))
    assert isinstance(job.result.report, ClassReport)
    for one, other in zip(again.rows, job.result.report.rows, strict=True):  # batches of 32 and of 4
        assert (one.name, one.predicted, one.rank) == (other.name, other.predicted, other.rank)
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
    predictor = ClassPredictor.from_file(file, device="cpu")
    images = sorted((job.data / "test").rglob("*.png"))
    for path, row in zip(images, again.rows, strict=True):
        found = predictor.predict(read_image(path))
        assert found.name == again.classes[row.predicted]
        assert found.probability == pytest.approx(row.confidence, abs=1e-6)
    folders = sorted({path.parent for path in images})
    said = predict_class_files(Prediction(file, folders, tmp_path / "out", device="cpu"))
    assert said == f"{len(images)} classes in {tmp_path / 'out' / 'predictions.csv'}"
    with (tmp_path / "out" / "predictions.csv").open(newline="") as opened:
        written = list(csv.DictReader(opened))
    assert [row["file"] for row in written] == [str(path) for path in images]
    assert [row["class"] for row in written] == [again.classes[row.predicted] for row in again.rows]


def test_evaluating_what_was_trained_on_is_said(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    evaluate_classifier(Evaluation(job.folder / "merged.safetensors", job.data, split="train"))
    assert "18 of 18 evaluated images were trained on" in caplog.text


def test_the_merged_file_is_timms_own(job: Job, tmp_path: Path) -> None:
    state = load_file(job.folder / "merged.safetensors")
    stock = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **ARCHITECTURE)
    stock.load_state_dict(state, strict=True)
    export_pth(job.folder / "merged.safetensors", tmp_path / "vit.pth")
    stock.load_state_dict(torch.load(tmp_path / "vit.pth", weights_only=True), strict=True)
    ours, _ = load_classes(job.folder / "merged.safetensors")
    batch = LabelledBatch(torch.arange(3 * 32 * 32).view(1, 3, 32, 32).to(torch.uint8), torch.zeros(1).long(), ("a",))
    assert torch.equal(stock.eval()(ours.normalise(batch.images)), ours(batch))


def test_base_and_delta_lead_to_the_merged_model_and_back(job: Job, tmp_path: Path) -> None:
    merged_file, delta = job.folder / "merged.safetensors", job.folder / "delta.safetensors"
    apply_delta(job.base, delta, tmp_path / "applied.safetensors")  # the backbone's file, of another head
    state = load_file(merged_file)
    assert all(torch.equal(t, state[n]) for n, t in load_file(tmp_path / "applied.safetensors").items())
    model, info = load_classes(tmp_path / "applied.safetensors")
    assert (info.classes, model.net.num_classes) == (("class_0", "class_1", "class_2"), 3)
    undo_delta(merged_file, delta, tmp_path / "base.safetensors")
    apply_delta(tmp_path / "base.safetensors", delta, tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == (tmp_path / "applied.safetensors").read_bytes()
    backbone = load_file(job.base)
    undone = load_file(tmp_path / "base.safetensors")
    assert all(torch.equal(t, backbone[n]) for n, t in undone.items() if not n.startswith("head."))


def test_the_audit_of_files(job: Job, tmp_path: Path) -> None:
    merged_file, selection = job.folder / "merged.safetensors", job.folder / "selection.safetensors"
    assert audit_files(job.base, merged_file, selection).ok
    state = load_file(merged_file)
    state["blocks.0.norm1.weight"][0] += 1
    from samtune.base.tensors import read_metadata

    save_tensors(tmp_path / "moved.safetensors", state, read_metadata(merged_file))
    report = audit_files(job.base, tmp_path / "moved.safetensors", selection)
    assert not report.ok
    assert "blocks.0.norm1.weight" in report.lines[-1]
    with pytest.raises(CheckpointError, match="neither a checkpoint file nor vit_tiny_patch16_224"):
        audit_files("vit_base_patch16_224", merged_file, selection)


def test_the_report_page_shows_classes(job: Job) -> None:
    page = (job.folder / "report.html").read_text()
    for text in ("Top-1 accuracy", "Classes that go wrong", "gps", "class folders"):
        assert text in page
    assert "mDice" not in page.split("Configuration")[0]


def test_the_same_seed_gives_the_same_run(job: Job, tmp_path: Path) -> None:
    twin = finetune(job.settings(), run_dir=tmp_path / "twin")
    one, other = load_file(job.folder / "merged.safetensors"), load_file(twin.run_dir / "merged.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_report_of_val_leaves_test_closed(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samtune.tasks.classes import dataset as classification

    opened: list[str] = []
    read = classification.read_image
    monkeypatch.setattr(classification, "read_image", lambda path: opened.append(str(path)) or read(path))
    result = finetune(job.settings("eval.split=val", "train.epochs=1"), run_dir=tmp_path / "run")
    assert result.report.split == "val"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["n_images"] == 9
    assert not [path for path in opened if "/test/" in path]
    assert [path for path in opened if "/val/" in path]


def test_retraining_uses_val_too_and_keeps_the_last_epoch(job: Job, tmp_path: Path) -> None:
    result = finetune(job.settings("data.retrain=true", "train.epochs=2"), run_dir=tmp_path / "run")
    assert (result.fit.best_epoch, result.fit.steps) == (2, 14)  # 27 images in batches of 4
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert not [line for line in lines if json.loads(line)["split"] == "val"]
    assert len((tmp_path / "run" / "splits" / "train.txt").read_text().splitlines()) == 27
    assert result.report.split == "test"


def test_all_seeds_report_on_the_same_images(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.data / "train", tmp_path / "data")
    splits = [prepare(job.settings(f"data.dir={tmp_path / 'data'}", f"run.seed={s}")).loaders.splits for s in (0, 1)]
    assert splits[0].digest() == splits[1].digest()
    drawn = [prepare(job.settings("data.shots=1", f"run.seed={s}")).loaders.splits for s in range(4)]
    assert len({tuple(item.name for item in found.train) for found in drawn}) > 1  # but shots are drawn
    assert {found.test[0].name for found in drawn} == {drawn[0].test[0].name}


@pytest.mark.parametrize(
    "select", ["{name: grft, k: 1}", "{name: spt, budget: 5%}", "{name: lora, rank: 2}", "{name: vpt_deep, prompts: 2}"]
)
def test_other_methods_go_the_same_way(job: Job, tmp_path: Path, select: str) -> None:
    result = finetune(
        job.settings(
            f"select={select}", "train.epochs=1", "tune.start.weight=1e-3" if "grft" in select else "run.seed=7"
        ),
        run_dir=tmp_path / "run",
    )
    name = "bundle" if "vpt" in select else "merged"
    file = tmp_path / "run" / f"{name}.safetensors"
    again = evaluate_classifier(Evaluation(file, job.data))
    assert again.values == result.report.values


def test_mixing_smoothing_and_the_average_run(job: Job, tmp_path: Path) -> None:
    more = ("train.mixup=0.8", "train.cutmix=1.0", "train.ema=0.9", "train.drop_path=0.1", "loss.label_smoothing=0.1")
    result = finetune(job.settings(*more, "data.augment=strong", "train.epochs=2"), run_dir=tmp_path / "run")
    assert result.fit.skipped == 0
    assert audit_files(job.base, tmp_path / "run" / "merged.safetensors", tmp_path / "run" / "selection.safetensors").ok


def one_step(job: Job, folder: Path, *more: str) -> tuple[float, torch.Tensor]:
    """Returns the loss of the first step, and the head after it."""
    run = Job(job.file, job.base, job.data, finetune(job.settings("train.steps=1", *more), run_dir=folder))
    return run.history("train")[0]["loss"], load_file(folder / "merged.safetensors")["head.weight"]


@pytest.fixture(scope="module")
def plain(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(job.data.parent / "cache"))
        return one_step(job, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "more", ["train.mixup=0.8", "train.cutmix=1.0", "train.drop_path=0.9", "loss.label_smoothing=0.1", "train.ema=0.9"]
)
def test_each_of_them_alone_changes_the_run(
    job: Job, plain: tuple[float, torch.Tensor], tmp_path: Path, more: str
) -> None:
    """All but the average change the first loss; the average changes what is kept."""
    loss, head = one_step(job, tmp_path / "run", more)
    assert (loss == plain[0]) == (more == "train.ema=0.9")
    assert not torch.equal(head, plain[1])


def test_a_vtab_task_by_the_protocol(job: Job, tmp_path: Path) -> None:
    write_vtab(tmp_path / "vtab", task="kitti")
    found = job.settings(f"data.dir={tmp_path / 'vtab'}", "data.name=vtab/kitti", "train.epochs=1", "eval.split=val")
    chosen = finetune(found, run_dir=tmp_path / "chosen")
    final = finetune(
        job.settings(f"data.dir={tmp_path / 'vtab'}", "data.name=vtab/kitti", "train.epochs=1", "data.retrain=true"),
        run_dir=tmp_path / "final",
    )
    assert (chosen.report.split, final.report.split) == ("val", "test")
    trained = [len((tmp_path / run / "splits" / "train.txt").read_text().splitlines()) for run in ("chosen", "final")]
    held = len((tmp_path / "chosen" / "splits" / "val.txt").read_text().splitlines())
    assert trained[1] == trained[0] + held


def test_a_dry_run_and_a_selection_alone(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dry_run(job.settings()).steps == 25
    folder = select_only(job.settings("score.batch=6"), run_dir=tmp_path / "run", report=True)
    page = (folder / "selection.html").read_text()
    assert "halves by seed 7" in page and "seeds 7 and 8" not in page  # the views come with the images
    assert not (tmp_path / "runs").exists()


def test_the_head_of_a_checkpoint_can_stay(job: Job, tmp_path: Path) -> None:
    file = job.folder / "merged.safetensors"
    kept = job.settings(f"model.checkpoint={file}", "model.head=checkpoint", "train.epochs=1", "train.lr=1e-9")
    result = finetune(kept, run_dir=tmp_path / "run")
    assert result.report.values == job.result.report.values
    for part in ("train", "val", "test"):
        (job.data / part / "class_1").rename(job.data / part / "renamed")
    try:
        with pytest.raises(CheckpointError, match="class_1"):
            finetune(kept, run_dir=tmp_path / "again")
    finally:
        for part in ("train", "val", "test"):
            (job.data / part / "renamed").rename(job.data / part / "class_1")


def test_options_of_the_other_task_are_refused(job: Job, run: RunCommand, tmp_path: Path) -> None:
    file = job.folder / "merged.safetensors"
    assert task_of_file(file).name == "classification"
    code, err = run("predict", "--checkpoint", file, "--out", tmp_path / "out", "--overlay", job.data)
    assert code == 2
    assert "are for masks" in err


def test_commands_of_a_classifier(job: Job, run: RunCommand, tmp_path: Path) -> None:
    file = job.folder / "merged.safetensors"
    assert run("evaluate", "--checkpoint", file, "--data", job.data, "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["top1"] == job.result.report.values["top1"]
    code, err = run("evaluate", "--checkpoint", file, "--data", job.data, "--metrics", "hd95")
    assert code == 2 and "'hd95' is of masks" in err
    assert run("predict", "--checkpoint", file, "--out", tmp_path / "p", job.data / "test" / "class_1")[0] == 0
    assert run("inspect", file)[0] == 0
    code, err = run("evaluate", "--checkpoint", file, "--data", tmp_path / "nowhere")
    assert code == 3
