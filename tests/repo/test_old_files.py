"""Files of samtune 0.1.0, from before its modules moved, still are what they were: `tests/data/before/README.md`.

Everything goes through the command line, and every number was printed by the code that wrote the files. Weights are
read as they lie there, so they are compared bit by bit; what is computed from them may differ in the last digits
between processors.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
import signal
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from class_trees import write_class_folders
from helpers import write_data
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before"
CLASSIFIER, ADAPTER, TOY, SWEEP = (BEFORE / name for name in ("classifier", "adapter", "sam_toy", "sweep"))
SEGMENTATION = BEFORE / "segmentation"
BASE = "e9d23bf0e1429a722044c2b0a30e67dbfc1c8b798cba2d76a4a2b479141a7082"  # of the classifiers, as `config.yaml` says
TOLERANCE = 1e-4  # of a probability, or of a mean of such
PIXELS = 2  # that may change sides in a mask, because their logit is next to 0

# What `inspect` said: format, tensors, numbers in them, base.
FILES = {
    "adapter/bundle": ("samtune-classifier-bundle-1", 40, 32907, BASE),
    "adapter/delta": ("samtune-delta-1", 10, 683, BASE),
    "adapter/features": (None, 2, 594, None),
    "adapter/selection": ("samtune-selection-2", 0, 0, BASE),
    "classifier/delta": ("samtune-delta-1", 29, 1923, BASE),
    "classifier/features": (None, 2, 594, None),
    "classifier/merged": ("samtune-classifier-1", 32, 32323, BASE),
    "classifier/selection": ("samtune-selection-2", 9, 608, BASE),
    "classifier_scores": ("samtune-scores-1", 32, 32323, BASE),
    "sam_toy/base": (None, 174, 32270, "17010f0f"),
    "sam_toy/bundle": ("samtune-bundle-1", 182, 32434, "17010f0f"),
    "sam_toy/bundle_delta": ("samtune-delta-1", 129, 9798, "17010f0f"),
    "sam_toy/bundle_selection": ("samtune-selection-2", 0, 0, "17010f0f"),
    "sam_toy/delta": ("samtune-delta-1", 154, 10642, "17010f0f"),
    "sam_toy/merged": ("samtune-merged-1", 174, 32270, "17010f0f"),
    "sam_toy/scores": ("samtune-scores-1", 173, 32254, "17010f0f"),
    "sam_toy/selection": ("samtune-selection-2", 11, 336, "17010f0f"),
    "segmentation/selection": ("samtune-selection-2", 27, 12576, "fa6229a9"),
    "sweep/cells/bias_0/delta": ("samtune-delta-1", 16, 867, "b3848d07"),
    "sweep/cells/bias_0/selection": ("samtune-selection-2", 0, 0, "b3848d07"),
    "sweep/cells/linear_0/delta": ("samtune-delta-1", 2, 99, "b3848d07"),
    "sweep/cells/linear_0/selection": ("samtune-selection-2", 0, 0, "b3848d07"),
    "sweep/grid/bias_0.0003/selection": ("samtune-selection-2", 0, 0, "b3848d07"),
    "sweep/grid/bias_0.003/selection": ("samtune-selection-2", 0, 0, "b3848d07"),
}
CONFIGS = sorted(str(path.relative_to(BEFORE)) for path in BEFORE.rglob("config.yaml"))
# `digest` of the weights
MERGED, BUNDLE, CLASSIFIER_BASE = "bfaa4cea9def0e83", "95717ad54c5038d2", "c6123bccfe0d34cf"
TOY_MERGED, TOY_BUNDLE, TOY_BASE = "343077eb2032f6f0", "70aafc722d874004", "fa5aff07d40e1edf"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def toy_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the toy known, also under a name that a config may have; the files hold 32 k parameters, not 4.8 M.

    The one place that knows where the tables of models are.
    """
    from samtune.models.sam.specs import VITS, SamSpec
    from samtune.models.table import MODELS

    monkeypatch.setitem(MODELS, "toy", MODELS["sam_tiny"])
    spec = SamSpec(16, 2, 2, (1,), image_size=64, window=3, prompt_dim=16, decoder_mlp=16)
    for name in ("toy", "sam_tiny"):
        monkeypatch.setitem(VITS, name, spec)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that the files were made with: `pictures` in class folders, `masks` with images and masks."""
    home = tmp_path_factory.mktemp("data")
    write_class_folders(home / "pictures", classes=3, train=6, val=3, test=6, size=40)
    write_data(home / "masks", train=6, val=3, test=3)
    return home


@pytest.fixture(autouse=True)
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the pictures where the configs have them."""
    for name in ("pictures", "masks"):
        (tmp_path / name).symlink_to(data / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `samtune ...` as installed, in this process; returns exit code, stdout and stderr."""
    (command,) = entry_points(group="console_scripts", name="samtune")
    main = command.load()
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are the test runner's
    monkeypatch.setenv("COLUMNS", "200")
    logger = logging.getLogger("samtune")
    for name in ("propagate", "handlers", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))  # as it was, after the test

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def base(run: Run, here: Path) -> Path:
    """The untuned classifier of both runs. A file, because other processors draw other random weights."""
    file = here / "base.safetensors"
    code, _, err = run("undo", CLASSIFIER / "merged.safetensors", "--delta", delta_of(CLASSIFIER), "--out", file)
    assert code == 0, err
    return file


def delta_of(folder: Path) -> Path:
    return folder / "delta.safetensors"


def digest(file: Path) -> str:
    """Hashes names and bits of weights, without any code of ours."""
    found, state = hashlib.sha256(), load_file(file)
    for name in sorted(state):
        found.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def metadata(file: Path) -> dict[str, str]:
    """What a file says, without the hashes of its content, which files have since."""
    with safe_open(file, framework="pt") as opened:
        return {key: text for key, text in (opened.metadata() or {}).items() if not key.startswith("samtune_")}


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def same_answers(folder: Path, old: Path) -> None:
    """Compares the tables of a classification image by image."""
    rows, wanted = table(folder / "per_image.csv"), table(old / "per_image.csv")
    for column in ("name", "label", "predicted", "rank"):
        assert [row[column] for row in rows] == [row[column] for row in wanted]
    for column in ("probability", "confidence"):
        found = [float(row[column]) for row in rows]
        assert found == pytest.approx([float(row[column]) for row in wanted], abs=TOLERANCE)


def in_it(old: Any, new: Any) -> bool:
    """Says whether all settings of an old file have their value in a new one, which may have more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and in_it(value, new[key]) for key, value in old.items())
    return bool(old == new)


def test_no_file_is_forgotten() -> None:
    found = {str(path.relative_to(BEFORE).with_suffix("")) for path in BEFORE.rglob("*.safetensors")}
    assert found == FILES.keys()
    assert len(CONFIGS) == 7


@pytest.mark.parametrize("name", FILES)
def test_inspect(run: Run, name: str) -> None:
    file = BEFORE / f"{name}.safetensors"
    code, out, err = run("inspect", file)
    assert (code, err) == (0, "")
    facts = {key: value.strip() for key, _, value in (line.partition(" ") for line in out.splitlines())}
    form, tensors, numbers, base_hash = FILES[name]
    assert (facts.get("format"), facts["tensors"], facts["numbers"]) == (form, str(tensors), str(numbers))
    assert facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert facts["bytes"] == str(file.stat().st_size)
    assert facts.get("base_hash", "").startswith(base_hash or "")
    if name == "classifier/merged":
        assert facts["classes"] == '["class_0", "class_1", "class_2"]'
        assert facts["options"] == '{"embed_dim": 32, "depth": 2, "num_heads": 2}'
    if name == "sam_toy/scores":
        assert facts["loss"] == "pixel_contrastive cells=32 temperature=0.1 seed=5 batch=3"


@pytest.mark.parametrize(
    ("file", "nll"), [(CLASSIFIER / "merged.safetensors", 1.032699), (ADAPTER / "bundle.safetensors", 1.040466)]
)
def test_a_classifier_measures_the_same(run: Run, here: Path, file: Path, nll: float) -> None:
    code, out, err = run("evaluate", "--checkpoint", file, "--data", "pictures", "--out", "out", "--device", "cpu")
    assert code == 0, err
    assert out.splitlines()[2].split() == ["top1", "0.6667", "0.4444", "to", "0.8889"]
    assert "trained on" not in err
    found = metrics(here / "out")
    assert (found["split"], found["n_images"], found["classes"]) == ("test", 18, ["class_0", "class_1", "class_2"])
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["metrics"]["worst_class"] == 0
    assert found["metrics"]["nll"] == pytest.approx(nll, abs=TOLERANCE)
    same_answers(here / "out", file.parent)


def test_the_split_of_a_run_still_tells_what_it_trained_on(run: Run) -> None:
    file = CLASSIFIER / "merged.safetensors"
    code, out, err = run("evaluate", "--checkpoint", file, "--data", BEFORE / "pictures", "--split", "train")
    assert (code, out.splitlines()[0].strip()) == (0, "train, 3 images")
    assert "3 of 3 evaluated images were trained on" in err


@pytest.mark.parametrize(
    ("file", "first", "last"),
    [(CLASSIFIER / "merged.safetensors", 0.363199, 0.373085), (ADAPTER / "bundle.safetensors", 0.353978, 0.375615)],
)
def test_a_classifier_answers_the_same(run: Run, here: Path, file: Path, first: float, last: float) -> None:
    folders = ("pictures/test/class_0", "pictures/test/class_1")
    code, _, err = run("predict", "--checkpoint", file, *folders, "--out", "out", "--device", "cpu")
    assert code == 0, err
    rows = table(here / "out" / "predictions.csv")
    assert [Path(row["file"]).name for row in rows] == [f"{number:03d}.png" for number in range(9, 15)] * 2
    assert [row["class"] for row in rows] == ["class_2"] * 6 + ["class_1"] * 6
    assert float(rows[0]["probability"]) == pytest.approx(first, abs=TOLERANCE)
    assert float(rows[-1]["probability"]) == pytest.approx(last, abs=TOLERANCE)
    assert [part.split()[0] for part in rows[0]["next"].split("; ")] == ["class_1", "class_0"]


def test_deltas_of_the_classifiers_lead_there_and_back(run: Run, here: Path, base: Path) -> None:
    assert (digest(base), metadata(base)["base_hash"]) == (CLASSIFIER_BASE, BASE)
    for old, weights in ((CLASSIFIER / "merged.safetensors", MERGED), (ADAPTER / "bundle.safetensors", BUNDLE)):
        assert run("apply", base, "--delta", delta_of(old.parent), "--out", "applied.safetensors")[0] == 0
        assert digest(here / "applied.safetensors") == digest(old) == weights
        assert metadata(here / "applied.safetensors") == metadata(old)
        assert run("undo", old, "--delta", delta_of(old.parent), "--out", "undone.safetensors")[0] == 0
        assert run("diff", base, "undone.safetensors") == (0, "no differences\n", "")
    code, _, err = run("apply", base, "--delta", SWEEP / "cells/bias_0/delta.safetensors", "--out", "other.safetensors")
    assert code == 4
    assert "belongs to another base" in err


def test_audit_and_diff_of_the_classifiers(run: Run, base: Path) -> None:
    merged, selection = CLASSIFIER / "merged.safetensors", CLASSIFIER / "selection.safetensors"
    lines = "31,008 unselected entries bit-equal to the base\n1,315 of 1,315 selected entries changed\n"
    assert run("audit", base, merged, selection) == (0, lines, "")
    lines = "32,224 unselected entries bit-equal to the base\n99 of 99 selected entries changed\n"
    assert run("audit", base, ADAPTER / "bundle.safetensors", ADAPTER / "selection.safetensors") == (0, lines, "")
    code, out, _ = run("audit", base, merged, ADAPTER / "selection.safetensors")
    assert code == 4
    assert "blocks.0.attn.proj.bias: 32 entries changed outside of the selection" in out
    rows = [line.split() for line in run("diff", base, merged)[1].splitlines()]
    assert ["blocks.0.mlp.fc2.weight", "32", "4096", "0.00296"] in rows
    assert rows[-1] == ["all", "of", "these", "1315", "31427"]


def test_a_random_base_is_drawn_again_by_its_seed(run: Run, here: Path, base: Path) -> None:
    if not draws_the_same(load_file(base)):
        pytest.skip("torch or this processor draws other random numbers than those of the files")
    merged = CLASSIFIER / "merged.safetensors"
    code, _, err = run("apply", "random", "--delta", delta_of(CLASSIFIER), "--out", "applied.safetensors")
    assert code == 0, err
    assert digest(here / "applied.safetensors") == MERGED
    code, out, _ = run("audit", "random", merged, CLASSIFIER / "selection.safetensors")
    assert (code, out.splitlines()[-1]) == (0, "1,315 of 1,315 selected entries changed")


def draws_the_same(state: dict[str, torch.Tensor]) -> bool:
    """Says whether timm's initialisation by the seed of the runs gives these weights, but for the head."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
        drawn = timm.create_model("vit_tiny_patch16_224", **options).state_dict()
        torch.manual_seed(3)
        head = torch.nn.init.trunc_normal_(torch.empty(3, 32), std=0.02)
    drawn |= {"head.weight": head, "head.bias": torch.zeros(3)}
    return all(torch.equal(drawn[name], tensor) for name, tensor in state.items())


def test_export_keeps_every_bit(run: Run, here: Path) -> None:
    assert run("export", CLASSIFIER / "merged.safetensors", "--out", "vit.pth")[0] == 0
    state, wanted = torch.load(here / "vit.pth", weights_only=True), load_file(CLASSIFIER / "merged.safetensors")
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_still_says_what_it_said(run: Run, name: str) -> None:
    code, out, err = run("finetune", "--config", BEFORE / name, "--print-config")
    old = yaml.safe_load((BEFORE / name).read_text(encoding="utf-8"))
    # the one key that is gone: images without an object are in no mean any more, and that is said
    gone = old["eval"].pop("empty", None)
    assert code == 0 and ("eval.empty has no meaning any more" in err if gone else err == "")
    assert old["task"] == ("segmentation" if name.startswith("segmentation") else "classification")
    assert in_it(old, yaml.safe_load(out))


def test_compare_runs(run: Run, here: Path) -> None:
    code, _, err = run("compare", CLASSIFIER, ADAPTER, "--json", "numbers.json")
    assert code == 0, err
    found = json.loads((here / "numbers.json").read_text(encoding="utf-8"))
    one, other = found["rows"]
    for row in (one, other):
        assert row["top1"]["mean"] == pytest.approx(2 / 3)
        assert row["top1"]["ci95"] == pytest.approx([4 / 9, 8 / 9])
        assert row["seeds"] == [3]
    assert (one["lr"], one["saved_bytes"], one["trainable"]["total"]) == (1e-3, 9108, 1315)
    assert (other["lr"], other["saved_bytes"], other["trainable"]["added"]) == (1.5e-3, 4668, 584)
    assert run("compare", SEGMENTATION, "--json", "numbers.json")[0] == 0
    found = json.loads((here / "numbers.json").read_text(encoding="utf-8"))
    assert found["before"] == pytest.approx({"mDice": 0.319246942696598, "mIoU": 0.20074187774833865})
    (row,) = found["rows"]
    assert row["mDice"]["mean"] == pytest.approx(0.5984396712147411)
    assert row["mDice"]["ci95"] == pytest.approx([0.43496357960457854, 0.7655502392344498])
    assert row["mIoU"]["mean"] == pytest.approx(0.44045692466725184)
    assert row["trainable"]["decoder"] == 756468


def test_compare_a_sweep(run: Run, here: Path) -> None:
    code, out, err = run("compare", SWEEP, "--json", "numbers.json")
    assert code == 0, err
    assert "| Bias | 66.67 | 44.44 to 88.89 | -33.33 (-55.56 to -11.11) | -33.33 (-55.56 to -11.11) |" in out
    assert "| Bias | 0.0003 (edge of the grid) | 0.0 min | 6 MiB | 0.1 s | 2 MiB | 5,500 B |" in out
    found = json.loads((here / "numbers.json").read_text(encoding="utf-8"))
    assert (found["title"], found["first"], found["best"], found["before"]) == ("sweep", "Linear", "Linear", None)
    linear, bias = found["rows"]
    assert (linear["top1"]["mean"], linear["lr"], linear["edge"], linear["steps"]) == (1, 1e-2, False, 15)
    assert bias["top1"]["minus_first"] == pytest.approx([-1 / 3, -5 / 9, -1 / 9])
    assert (bias["values"], bias["edge"]) == ({"train.lr": 3e-4}, True)
    assert (bias["trainable"]["bias"], bias["trainable"]["norm"]) == (608, 160)


def test_a_finished_sweep_runs_nothing_again(run: Run, here: Path) -> None:
    shutil.copytree(SWEEP, here / "sweep")
    shutil.copy(BEFORE / "tiny.yaml", here)
    kept = {path: path.read_bytes() for path in (here / "sweep").rglob("*") if path.is_file()}
    code, out, err = run("sweep", "--config", "sweep/sweep.yaml", "--out", "sweep")
    assert code == 0, err
    assert "| Linear | 100.00 | 100.00 to 100.00 |  |  |" in out
    assert not list((here / "sweep").rglob("*.log"))
    for path, content in kept.items():
        assert path.name == "sweep.yaml" or path.read_bytes() == content, path
    # settings that decide a result are told from those of the file
    code, _, err = run("sweep", "--config", "sweep/sweep.yaml", "--out", "sweep", "train.batch=3")
    assert code == 8
    assert "train.batch=6, not 3" in err


def test_scores_are_read_and_nothing_is_scored(run: Run, here: Path, base: Path) -> None:
    scores = BEFORE / "classifier_scores.safetensors"
    given = (f"model.checkpoint={base}", "model.head=checkpoint", f"score.file={scores}")
    code, out, err = run("select", "--config", CLASSIFIER / "config.yaml", *given, "--run-dir", "run")
    assert (code, out.splitlines()[-1]) == (0, "run"), err
    assert "scores of 3 passes read from" in err
    assert out.startswith("gps: 1,315 trainable parameters, 4.07 % of the model\n")
    lines = "31,008 unselected entries bit-equal to the base\n1,315 of 1,315 selected entries changed\n"
    assert run("audit", base, CLASSIFIER / "merged.safetensors", here / "run/selection.safetensors") == (0, lines, "")
    code, _, err = run("select", "--config", CLASSIFIER / "config.yaml", *given, "score.batch=9", "--run-dir", "other")
    assert code == 4
    assert "views=2 batch=6, here contrastive temperature=0.07 views=2 batch=9" in err


def test_finetune_with_the_old_selection_repeats_the_run(run: Run, here: Path, base: Path) -> None:
    selection = CLASSIFIER / "selection.safetensors"
    given = (f"model.checkpoint={base}", "model.head=checkpoint", f"select={{file: {selection}}}")
    code, out, err = run("finetune", "--config", CLASSIFIER / "config.yaml", *given, "--run-dir", "run")
    assert (code, out.splitlines()[-1]) == (0, "run"), err
    assert "selected by gps, nothing is scored" in err
    same_answers(here / "run", CLASSIFIER)
    old, new = metrics(CLASSIFIER), metrics(here / "run")
    assert (new["trainable"], new["top1"]) == (old["trainable"], old["top1"])
    assert new["metrics"]["nll"] == pytest.approx(1.032699, abs=TOLERANCE)
    losses = [
        [event["loss"] for event in map(json.loads, (folder / "history.jsonl").open()) if event["split"] == "train"]
        for folder in (here / "run", CLASSIFIER)
    ]
    assert len(losses[0]) == 9
    assert losses[0] == pytest.approx(losses[1], abs=10 * TOLERANCE)
    assert run("audit", base, here / "run/merged.safetensors", selection)[0] == 0


def test_an_old_model_is_a_start_with_its_head(run: Run, here: Path) -> None:
    given = (f"model.checkpoint={CLASSIFIER / 'merged.safetensors'}", "model.head=checkpoint", "select={name: linear}")
    code, _, err = run("select", "--config", CLASSIFIER / "config.yaml", *given, "--run-dir", "run")
    assert code == 0, err
    merged_hash = metadata(delta_of(CLASSIFIER))["merged_hash"]
    assert merged_hash.startswith("496470c8fc3ba84b")
    out = run("inspect", here / "run/selection.safetensors")[1]
    assert ["base_hash", merged_hash] in [line.split() for line in out.splitlines()]


def test_a_selection_of_sam_tiny_fits_it_still(run: Run, here: Path) -> None:
    file = SEGMENTATION / "selection.safetensors"
    given = (f"select={{file: {file}}}", "--run-dir", "run")
    code, out, err = run("select", "--config", SEGMENTATION / "config.yaml", *given)
    assert code == 0, err
    assert "selected by gps, nothing is scored" in err
    assert out.startswith("gps: 781,620 trainable parameters, 16.23 % of the model\n")
    assert digest(here / "run/selection.safetensors") == digest(file) == "5d24d9ced75f82dc"


@pytest.mark.usefixtures("toy_spec")
@pytest.mark.parametrize(
    ("name", "pixels", "dice", "iou"),
    [
        ("merged", [191, 189, 191, 197, 176, 189, 194, 179, 192, 202, 176, 197], 0.158128, 0.086175),
        ("bundle", [0, 28, 89, 25, 79, 69, 45, 56, 25, 56, 41, 30], 0.122546, 0.065295),
    ],
)
def test_a_toy_sam_draws_the_same_masks(
    run: Run, here: Path, name: str, pixels: list[int], dice: float, iou: float
) -> None:
    file = TOY / f"{name}.safetensors"
    code, _, err = run("predict", "--checkpoint", file, "masks/images", "--out", "drawn", "--device", "cpu")
    assert code == 0, err
    found = []
    for path in sorted((here / "drawn").glob("*.png")):
        with Image.open(path) as mask:
            counts = mask.histogram()
            assert sum(counts) == counts[0] + counts[255]
            found.append(counts[255])
    assert found == pytest.approx(pixels, abs=PIXELS)
    code, _, err = run("evaluate", "--checkpoint", file, "--data", "masks", "--out", "out", "--device", "cpu")
    assert code == 0, err
    report = metrics(here / "out")
    assert (report["split"], report["n_images"]) == ("test", 3)
    assert (report["mDice"], report["mIoU"]) == pytest.approx((dice, iou), abs=0.005)
    assert [int(row["truth_px"]) for row in table(here / "out/per_image.csv")] == [507, 342, 439]
    assert [int(row["pred_px"]) for row in table(here / "out/per_image.csv")] == pytest.approx(pixels[9:], abs=PIXELS)


def test_deltas_of_a_toy_sam_lead_there_and_back(run: Run, here: Path) -> None:
    base = TOY / "base.safetensors"
    assert digest(base) == TOY_BASE
    for name, delta, weights in (("merged", "delta", TOY_MERGED), ("bundle", "bundle_delta", TOY_BUNDLE)):
        old = TOY / f"{name}.safetensors"
        change = ("--delta", TOY / f"{delta}.safetensors", "--out")
        assert run("apply", base, *change, "applied.safetensors")[0] == 0
        assert digest(here / "applied.safetensors") == digest(old) == weights
        assert metadata(here / "applied.safetensors") == metadata(old)
        assert run("undo", old, *change, "undone.safetensors")[0] == 0
        assert digest(here / "undone.safetensors") == TOY_BASE
        assert metadata(here / "undone.safetensors") == metadata(base)


def test_audit_and_diff_of_a_toy_sam(run: Run) -> None:
    base, merged = TOY / "base.safetensors", TOY / "merged.safetensors"
    lines = "21,964 unselected entries bit-equal to the base\n7,959 of 10,306 selected entries changed\n"
    assert run("audit", base, merged, TOY / "selection.safetensors") == (0, lines, "")
    lines = "22,636 unselected entries bit-equal to the base\n7,288 of 9,634 selected entries changed\n"
    assert run("audit", base, TOY / "bundle.safetensors", TOY / "bundle_selection.safetensors") == (0, lines, "")
    assert run("diff", base, merged)[1].splitlines()[-1].split() == ["all", "of", "these", "7959", "28616"]


@pytest.mark.usefixtures("toy_spec")
def test_scores_of_a_toy_sam_are_read(run: Run, here: Path) -> None:
    base = TOY / "base.safetensors"
    given = ("model.name=sam_tiny", f"model.checkpoint={base}", f"score.file={TOY / 'scores.safetensors'}")
    code, out, err = run("select", "--config", BEFORE / "toy.yaml", *given, "--run-dir", "run")
    assert code == 0, err
    assert "scores of 2 passes read from" in err
    assert out.startswith("gps: 10,306 trainable parameters, 31.95 % of the model\n")
    assert digest(here / "run/selection.safetensors") == digest(TOY / "selection.safetensors") == "05826dfb25940b04"
