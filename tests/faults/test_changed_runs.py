"""What is resumed must be the same job: another one is refused with all that differs; damage is gone around."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy
from helpers import write_data
from job import SETTINGS, Undisturbed, both, die, finetune, in_child, samtune, saving_always, trap, truths
from PIL import Image

from samtune.run.updates import Updates

KILLED = both(saving_always, trap(Updates, "_update", 6, die))


@pytest.fixture
def killed(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    assert in_child(finetune(undisturbed.data, tmp_path / "run"), prepare=KILLED).code == -9
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.lr=0.1", "train.lr: 0.1, was 0.02"),
        ("select.per_neuron=3", "select.per_neuron: 3, was 1"),
        ("run.seed=4", "run.seed: 4, was 3"),
        ("data.prompt=box", "data.prompt: box, was none"),
    ],
)
def test_another_setting_is_refused(change: str, line: str, killed: Path, undisturbed: Undisturbed) -> None:
    ended = in_child(finetune(undisturbed.data, killed, change, "train.min_lr=0.00001"))
    assert ended.code == 2
    assert line in ended.said and "train.min_lr: 1e-05, was 0.0" in ended.said and "2 differ" in ended.said


def test_more_epochs_workers_and_a_tracker_are_allowed(killed: Path, undisturbed: Undisturbed) -> None:
    more = ("train.epochs=4", "data.workers=1", "data.cache=true")
    ended = in_child(finetune(undisturbed.data, killed, *more))
    assert ended.code == 0, ended.said
    steps = [event["step"] for event in truths(killed)["history"] if event["split"] == "train"]
    assert steps == list(range(1, 13))


def test_a_folder_alone_is_enough(killed: Path, undisturbed: Undisturbed) -> None:
    ended = in_child(samtune("finetune", "--resume", killed))
    assert ended.code == 0, ended.said
    assert truths(killed) == undisturbed.truths


def test_auto_finds_the_newest_unfinished_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    settings = (*SETTINGS, f"data.dir={undisturbed.data}", f"run.dir={tmp_path / 'runs'}")
    work = samtune("finetune", "--config", "polyp.yaml", "--resume", "auto", *settings)
    assert in_child(work, prepare=KILLED).code == -9
    assert in_child(work).code == 0
    (run,) = (tmp_path / "runs").glob("*/*/")
    assert truths(run) == undisturbed.truths
    assert in_child(work).code == 0  # that one is finished: a new one begins
    assert len(list((tmp_path / "runs").glob("*/*/"))) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("file", ["values.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    file: str, damage: Callable[[Path], None], killed: Path, undisturbed: Undisturbed
) -> None:
    damage(killed / "checkpoints" / "step-000005" / file)
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 0, ended.said
    told = "step-000005/" if file == "manifest.json" else f"step-000005/{file}"  # its hashes are of the others
    assert told in ended.said and "The one before is tried" in ended.said
    assert "goes on after step 4" in ended.said
    assert truths(killed) == undisturbed.truths


def test_without_a_sound_checkpoint_it_says_so(killed: Path, undisturbed: Undisturbed) -> None:
    for folder in (killed / "checkpoints").glob("step-*"):
        cut(folder / "values.safetensors")
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 4
    assert "no checkpoint in" in ended.said and "--overwrite" in ended.said


def test_best_weights_that_are_damaged_are_told(killed: Path, undisturbed: Undisturbed) -> None:
    """Both states name them: there is none to go on with."""
    (best,) = (killed / "checkpoints").glob("best-*")
    cut(best / "values.safetensors")
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 4
    assert f"{best.name}/values.safetensors" in ended.said and "no checkpoint in" in ended.said


def test_a_state_that_is_no_state_is_told(killed: Path, undisturbed: Undisturbed) -> None:
    """Of another version: the hashes are right, the content is not."""
    import hashlib

    for folder in (killed / "checkpoints").glob("step-*"):
        content = json.dumps({"progress": {"stride": 4}}).encode()
        (folder / "state.json").write_bytes(content)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"]["state.json"] = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 4 and "is of another version" in ended.said


def test_pictures_swapped_under_the_run_are_told(tmp_path: Path, undisturbed: Undisturbed) -> None:
    data = write_data(tmp_path / "data")
    assert in_child(finetune(data, tmp_path / "run"), prepare=KILLED).code == -9
    picture = data / "images" / "p02.png"
    Image.fromarray(255 - np.array(Image.open(picture))).save(picture)
    ended = in_child(finetune(data, tmp_path / "run"))
    assert ended.code == 3
    assert "p02" in ended.said


def test_another_selection_is_told(killed: Path, undisturbed: Undisturbed) -> None:
    """Of as many entries: their values would go to other places."""
    from samtune.selection import load_selection, save_selection

    file = killed / "selection.safetensors"
    found = load_selection(file)
    name = next(name for name, indices in found.entries.items() if indices[0] > 0)
    found.entries[name][0] -= 1
    shapes = {name: tuple(tensor.shape) for name, tensor in toy.toy_model().net.state_dict().items()}
    save_selection(found, file, shapes)
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 4
    assert "is not the selection of the checkpoints" in ended.said


def test_another_base_is_told(killed: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    real = toy.toy_model
    monkeypatch.setattr(toy, "toy_model", lambda **options: real(seed=1, **options))
    ended = in_child(finetune(undisturbed.data, killed))
    assert ended.code == 4
    assert "was run on another base" in ended.said
