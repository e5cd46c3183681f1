"""Methods end to end: whatever trains, the run ends with a file that predicts what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import RunCommand, write_data
from PIL import Image
from safetensors.torch import load_file

from samtune.base.tensors import read_metadata
from samtune.run.recipe import RunResult, finetune
from samtune.run.settings import load_config
from samtune.selection import load_selection
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.evaluate import evaluate_file
from samtune.tasks.masks.predict import Predictor

SETTINGS = (
    "run.device=cpu",
    "model.image_size=64",
    "score.batch=2",
    "train.batch=2",
    "train.steps=2",
    "train.precision=fp32",
    "eval.overlays=0",
    "track.mlflow=false",
)
Finetune = Callable[..., RunResult]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run_job(data: Path) -> Finetune:
    def run_job(select: str, *more: str, name: str = "run") -> RunResult:
        config = load_config("polyp.yaml", [*SETTINGS, f"data.dir={data}", f"select={select}", *more])
        return finetune(config, run_dir=Path(name))

    return run_job


def metrics_of(result: RunResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.run_dir / "metrics.json").read_text())
    return found


MERGING = {
    "lora": "{name: lora, rank: 2}",
    "dora": "{name: lora, variant: dora, rank: 2}",
    "pissa": "{name: lora, variant: pissa, rank: 2}",
    "ssf": "{name: ssf}",
    "spt": "{name: spt, budget: 20000, rank: 2}",
    "grft": "{name: grft, pattern: columns}",
    "partial": "{name: partial}",
}


@pytest.mark.parametrize("select", MERGING.values(), ids=MERGING)
def test_what_merges_ends_as_an_ordinary_checkpoint(select: str, run_job: Finetune, data: Path) -> None:
    result = run_job(select)
    merged = result.run_dir / "merged.safetensors"
    assert not (result.run_dir / "bundle.safetensors").exists()
    report = evaluate_file(Evaluation(merged, data, split="test", device="cpu"))
    assert report.mDice == pytest.approx(metrics_of(result)["mDice"], abs=1e-9)


def test_an_adapter_ends_as_a_bundle_that_works_like_a_merged_file(
    run_job: Finetune, run: RunCommand, data: Path, tmp_path: Path
) -> None:
    result = run_job("{name: adapter, width: 4}", "train.lr=1e-2")
    folder = result.run_dir
    bundle = folder / "bundle.safetensors"
    assert not (folder / "merged.safetensors").exists()
    assert read_metadata(bundle)["format"] == "samtune-bundle-2"
    counts = metrics_of(result)["trainable"]
    assert counts["added"] == 9 * 1808 + 16 * 4 == result.counts.added and counts["selected"] == 0
    report = evaluate_file(Evaluation(bundle, data, split="test", device="cpu"))
    assert report.mDice == pytest.approx(metrics_of(result)["mDice"])
    image = np.asarray(Image.open(next((data / "images").iterdir())))
    probability = Predictor.from_file(bundle, device="cpu").predict(image).probability
    assert probability.shape == image.shape[:2] and 0 < float(probability.mean()) < 1
    assert run("predict", "--checkpoint", bundle, data / "images", "--out", tmp_path / "masks")[0] == 0
    delta, rebuilt = folder / "delta.safetensors", tmp_path / "again.safetensors"
    assert run("apply", "sam_lite", "--delta", delta, "--out", rebuilt)[0] == 0
    again, stored = load_file(rebuilt), load_file(bundle)
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)
    assert run("undo", bundle, "--delta", delta, "--out", tmp_path / "base.safetensors")[0] == 0
    assert run("audit", "sam_lite", bundle, folder / "selection.safetensors")[0] == 0
    code, err = run("export", bundle, "--out", tmp_path / "sam.pth")
    assert code == 4 and "is a bundle: its adapter modules can't be merged" in err


@pytest.mark.parametrize("select", ["{name: gps}", "{name: lora, rank: 4}", "{name: spt, budget: 20000, rank: 2}"])
def test_a_bf16_base_gives_fp32_files_that_differ_in_the_selection_alone(select: str, run_job: Finetune) -> None:
    result = run_job(select, "tune.base=bf16", "train.precision=bf16")  # the audit of the run is the test
    state = load_file(result.run_dir / "merged.safetensors")
    frozen = state["image_encoder.trunk.blocks.1.0.conv_pw.weight"]
    assert frozen.dtype == torch.float32 and not torch.equal(frozen, frozen.bfloat16().float())


@pytest.mark.parametrize("select", ["{name: gps}", "{name: lora, rank: 4}"])
def test_a_base_in_8_bits_is_told_and_is_not_in_the_files(
    select: str, run_job: Finetune, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="samtune"):
        result = run_job(select, "tune.base=int8", "model.name=sam_tiny")  # the audit of the run is the test
    (said,) = [line for line in caplog.messages if "saw the base in 8 bits" in line]
    moved, largest = map(float, re.findall(r"up to ([\d.]+)", said))
    assert 0 < moved < 0.2 * largest
    report = evaluate_file(Evaluation(result.run_dir / "merged.safetensors", data, split="test", device="cpu"))
    assert report.mDice == pytest.approx(metrics_of(result)["mDice"], abs=1e-9)


def test_scores_are_computed_once_for_methods_that_share_them(
    run_job: Finetune, caplog: pytest.LogCaptureFixture
) -> None:
    first = run_job("{name: gps}", "score.file=scores/a.safetensors", name="gps")
    stored = Path("scores/a.safetensors").read_bytes()
    with caplog.at_level("INFO", logger="samtune"):
        again = run_job("{name: gps}", "score.file=scores/a.safetensors", name="again")
        run_job("{name: grft}", "score.file=scores/a.safetensors", name="grft")
    assert sum("passes read from" in line for line in caplog.messages) == 2
    assert Path("scores/a.safetensors").read_bytes() == stored
    same = [load_selection(result.run_dir / "selection.safetensors") for result in (first, again)]
    assert same[0].provenance == same[1].provenance and same[0].entries.keys() == same[1].entries.keys()
    assert all(torch.equal(same[0].entries[name], same[1].entries[name]) for name in same[0].entries)


def test_a_criterion_of_forward_passes_keeps_its_scores_and_takes_no_loss(
    run_job: Finetune, run: RunCommand, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    select, kept = "{name: gps, criterion: fps}", "score.file=inputs.safetensors"
    with caplog.at_level("INFO", logger="samtune"):
        runs = [run_job(select, kept, name=name) for name in ("first", "again")]
    assert sum("passes read from" in line for line in caplog.messages) == 1
    assert read_metadata(Path("inputs.safetensors"))["of"] == "inputs"
    first, again = (load_selection(result.run_dir / "selection.safetensors") for result in runs)
    assert first.provenance == again.provenance and first.provenance["loss"] == "mean input"
    assert all(torch.equal(first.entries[name], again.entries[name]) for name in first.entries)
    costs = [json.loads(line) for r in runs for line in (r.run_dir / "history.jsonl").read_text().splitlines()]
    took = [event["seconds"] for event in costs if event["split"] == "select"]
    assert len(took) == 2 and min(took) >= float(read_metadata(Path("inputs.safetensors"))["seconds"]) > 0
    given = [*SETTINGS, f"data.dir={data}", f"select={select}"]
    code, err = run("finetune", "--config", "polyp.yaml", *given, "score.loss=task", "score.subsets=2")
    assert code == 2
    assert "score.loss and score.subsets can't be used here" in err and "choose a criterion that reads gradients" in err
    code, err = run("finetune", "--config", "polyp.yaml", *given, kept, "select.criterion=gradient", "--run-dir", "x")
    assert code == 4 and "of another loss (mean input, here pixel_contrastive" in err
    code, _ = run("select", "--config", "polyp.yaml", *given, "--report", "--run-dir", "page")
    page = Path("page/selection.html").read_text()
    assert code == 0 and "halves by seed 0" in page and "standard error" not in page


@pytest.mark.parametrize(
    ("setting", "differs"),
    [("score.temperature=0.2", "loss"), ("score.loss=task", "loss"), ("score.images=4", "images"), ("run.seed=3", "")],
)
def test_scores_of_another_pass_are_refused(
    run_job: Finetune, run: RunCommand, data: Path, setting: str, differs: str
) -> None:
    run_job("{name: gps}", "score.file=a.safetensors")
    given = [*SETTINGS, f"data.dir={data}", "select={name: gps}", "score.file=a.safetensors", setting]
    code, err = run("finetune", "--config", "polyp.yaml", *given, "--run-dir", "other")
    assert code == 4 and differs in err and "score.file" in err


def test_a_selection_is_used_again_and_only_on_its_base(run_job: Finetune, run: RunCommand, data: Path) -> None:
    first = run_job("{name: gps, per_neuron: 3}", name="first")
    file = first.run_dir / "selection.safetensors"
    again = run_job(f"{{file: {file}}}", name="again")
    assert again.counts == first.counts
    assert "gps per_neuron=3" in (again.run_dir / "report.html").read_text()
    base = ["model.checkpoint=random", f"select={{file: {file}}}"]
    code, err = run("finetune", "--config", "polyp.yaml", *SETTINGS, f"data.dir={data}", *base, "--run-dir", "other")
    assert code == 4 and "was selected on another base" in err and "leave select.file empty" in err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["select={file: a.safetensors, per_neuron: 2}"], "select.per_neuron: not used with a file"),
        (["select={file: a.safetensors, budget: 10}"], "select.budget: not used with a file"),
        (["select={file: a.safetensors}", "tune.exclude=[neck]"], "no tune.biases or exclude beside it"),
        (["select={file: a.safetensors}"], "a.safetensors does not exist"),
    ],
)
def test_what_does_not_go_with_a_selection_file(
    run: RunCommand, data: Path, settings: list[str], expected: str
) -> None:
    given = ["--config", "polyp.yaml", *SETTINGS, f"data.dir={data}", *settings]
    code, err = run("select", *given, "--run-dir", "other")
    assert code in (2, 4) and expected in err


def test_cached_embeddings_change_no_number(run_job: Finetune) -> None:
    plain = run_job("{name: linear}", "data.augment=false", name="plain")
    cached = run_job("{name: linear}", "data.augment=false", "train.embeddings=cache", name="cached")
    assert len(list(Path("cache").glob("*.safetensors"))) >= 4  # of the images of two steps
    assert metrics_of(cached)["mDice"] == pytest.approx(metrics_of(plain)["mDice"], abs=1e-6)


def test_embeddings_of_an_encoder_that_trains_are_refused(run: RunCommand, data: Path) -> None:
    given = [*SETTINGS, f"data.dir={data}", "data.augment=false", "train.embeddings=cache", "select={name: bias}"]
    code, err = run("finetune", "--config", "polyp.yaml", *given, "--run-dir", "other")
    assert code == 2 and "train.embeddings caches what the encoder computes" in err


def test_grft_with_subsets_and_the_pull_to_the_start(run_job: Finetune) -> None:
    free = run_job("{name: grft}", "score.subsets=2", "train.lr=1e-2", name="free")
    pulled = run_job(
        "{name: grft}", "score.subsets=2", "train.lr=1e-2", "tune.start={weight: 100, blocks: 6}", name="pulled"
    )
    losses = [
        [
            json.loads(line)["loss"]
            for line in (r.run_dir / "history.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for r in (free, pulled)
    ]
    assert losses[0][0] == losses[1][0]  # at the start the pull is zero
    assert losses[1][1] > losses[0][1]
    whole = run_job("{name: grft}", name="whole")
    hashes = [load_selection(r.run_dir / "selection.safetensors").provenance["images_hash"] for r in (free, whole)]
    assert hashes[0] != hashes[1]


def test_the_selection_page_compares_two_selections(run: RunCommand, data: Path) -> None:
    given = ["--config", "polyp.yaml", *SETTINGS, f"data.dir={data}"]
    assert run("select", *given, "--run-dir", "a")[0] == 0
    settings = ["select={name: gps, per_neuron: 2}", "--report", "--against", "a/selection.safetensors"]
    code, err = run("select", *given, *settings, "--run-dir", "b")
    assert code == 0
    (done,) = re.findall(r"score again  (\d+)/(\d+)  in ", err)  # three more passes are not made in silence
    assert done[0] == done[1] and int(done[0]) % 3 == 0
    page = Path("b/selection.html").read_text()
    for part in ("Distribution", "Jaccard", "standard error", "seeds 0 and 1", "halves"):
        assert part in page
    code, err = run("select", *given, "--against", "a/selection.safetensors", "--run-dir", "c")
    assert code == 2 and "add --report" in err
