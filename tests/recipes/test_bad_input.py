"""What a user gets wrong: one clear message, the exit code of its kind, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RunCommand, write_data
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from samtune.base.folder import MARKER
from samtune.models.table import build_model

SMALL = ("model.image_size=64", "train.steps=1", "train.precision=fp32", "track.mlflow=false", "eval.overlays=0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite.safetensors"
    save_file(build_model("sam_lite", checkpoint="random").net.state_dict(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", train=2, val=1, test=1)


@pytest.fixture
def finetune(run: RunCommand, data: Path, weights: Path, tmp_path: Path) -> RunCommand:
    """Runs a tiny job with some settings changed; returns exit code and stderr."""

    def finetune(*changes: str, run_dir: Path = tmp_path / "run") -> tuple[int, str]:
        settings = (*SMALL, f"data.dir={data}", f"model.checkpoint={weights}", *changes)
        return run("finetune", "--config", "polyp.yaml", *settings, "--run-dir", run_dir)

    return finetune


def test_the_job_itself_is_fine(finetune: RunCommand, tmp_path: Path) -> None:
    code, err = finetune()
    assert (code, "error" in err) == (0, False)
    assert (tmp_path / "run" / "merged.safetensors").is_file()


# checkpoints: 4


def truncate(path: Path, weights: Path) -> None:
    path.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def truncate_pth(path: Path, weights: Path) -> None:
    torch.save(load_file(weights), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_text(path: Path, weights: Path) -> None:
    path.write_text("not weights at all\n" * 100)


def change(path: Path, weights: Path, **tensors: Tensor | None) -> None:
    state: dict[str, Tensor | None] = {**load_file(weights), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


def drop_a_key(path: Path, weights: Path) -> None:
    change(path, weights, **{"image_encoder.neck.fine.weight": None})


def add_a_key(path: Path, weights: Path) -> None:
    change(path, weights, **{"image_encoder.extra": torch.zeros(3)})


def put_a_nan(path: Path, weights: Path) -> None:
    broken = load_file(weights)["image_encoder.neck.fine.weight"]
    broken[0, 0] = torch.nan
    change(path, weights, **{"image_encoder.neck.fine.weight": broken})


def other_model(path: Path, weights: Path) -> None:
    save_file({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def pickle_code(path: Path, weights: Path) -> None:
    torch.save({"model": Evil()}, path)


CHECKPOINTS = [
    ("half.safetensors", truncate, r"half.safetensors is damaged or no safetensors file"),
    ("half.pth", truncate_pth, r"half.pth is damaged or no checkpoint"),
    ("text.pth", write_text, r"text.pth is damaged or no checkpoint"),
    ("text.safetensors", write_text, r"text.safetensors is damaged or no safetensors file"),
    ("less.safetensors", drop_a_key, r"less.safetensors does not fit the model .* 1 missing (image_encoder.neck.fine."),
    ("more.safetensors", add_a_key, r"more.safetensors does not fit the model .* 1 unknown (image_encoder.extra)"),
    ("nan.safetensors", put_a_nan, r"nan.safetensors holds NaN or infinity in 1 tensors (image_encoder.neck."),
    ("b.safetensors", other_model, r"It looks like sam_vit_b: set model.name to that."),
    ("evil.pth", pickle_code, r"evil.pth"),
]


@pytest.mark.parametrize(("name", "make", "message"), CHECKPOINTS, ids=[name for name, _, _ in CHECKPOINTS])
def test_a_bad_checkpoint_is_code_4(
    finetune: RunCommand, weights: Path, tmp_path: Path, name: str, make: object, message: str
) -> None:
    path = tmp_path / name
    make(path, weights)  # type: ignore[operator]
    content = path.read_bytes()
    code, err = finetune(f"model.checkpoint={path}")
    assert code == 4
    for part in message.split(" .* "):
        assert part in err
    assert not (tmp_path / "run").exists()
    assert path.read_bytes() == content
    assert not Path("executed").exists()


def test_a_missing_checkpoint_is_code_4(finetune: RunCommand, run: RunCommand, data: Path, tmp_path: Path) -> None:
    code, err = finetune("model.checkpoint=gone.safetensors")
    assert code == 4
    assert "gone.safetensors does not exist. Check model.checkpoint" in err
    for command in (("evaluate", "--data", data), ("predict", data / "images", "--out", tmp_path / "o")):
        code, err = run(*command, "--checkpoint", "gone.safetensors")
        assert code == 4
        assert "gone.safetensors does not exist" in err
    assert not (tmp_path / "o").exists()


def test_plain_weights_are_no_merged_model(run: RunCommand, weights: Path, data: Path) -> None:
    code, err = run("evaluate", "--checkpoint", weights, "--data", data)
    assert code == 4
    assert "lite.safetensors is no merged model" in err
    assert "Give the merged.safetensors of a run folder" in err


# settings: 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=sam_vit_z", "model.name: \"sam_vit_z\", expected 'sam_lite'"),
        ("model.image_size=100", "model.image_size is 100, but sam_lite needs a multiple of 32; the nearest is 96."),
        ("select={name: grtf}", "unknown selector 'grtf'. Did you mean 'grft'? Known: "),
        ("train.epochs=0", "train.epochs: 0, expected a value >= 1."),
        ("train.batch=0", "train.batch: 0, expected a value >= 1 or 'auto'."),
        ("select.per_neuron=0", "select.per_neuron: 0, expected a value >= 1."),
        ("select.per_neuron=true", "select.per_neuron: true, expected an integer."),
        ("select.per_neuron=100000", "select.per_neuron is 100000, but the neurons of "),
        ("select={name: grft, budget: 10}", "select.budget is 10 parameters, but grft picks at least "),
        ("select={name: grft, budget: much}", 'select.budget: "much", expected a number of parameters >= 1'),
        ("select={name: gps, budget: 1%, per_neuron: 2}", "select.budget and select.per_neuron both set the size"),
        ("select={name: vpt_deep}", "vpt_deep"),
        ("select={name: mlp}", "linear"),
        ("select={name: lora, rank: 5000}", "rank"),
        ("select={name: lora, targets: [qvk]}", "conv_pw"),
        ("select={name: adapter, places: [attn]}", "block"),
        ("select={name: spt, tau: 0}", "select.tau"),
        ("tune.exclude=[block 90]", "tune.exclude: unknown part 'block 90'"),
        ("tune.start={weight: 1, blocks: 99}", "tune.start.blocks is 99"),
        ("train.embeddings=cache", "false with train.embeddings"),
        ("train.epoch=3", "train.epoch: unknown key. Did you mean 'epochs'?"),
        ("eval.metrics=[dise]", "eval.metrics.0: unknown metric 'dise'."),
    ],
)
def test_a_bad_setting_is_code_2(finetune: RunCommand, setting: str, message: str) -> None:
    code, err = finetune(setting)
    assert code == 2
    assert message in err


def test_a_k_larger_than_a_row_says_the_largest_before_any_work(finetune: RunCommand, tmp_path: Path) -> None:
    code, err = finetune("select.per_neuron=17")
    assert code == 2
    assert "have 16 inputs: that is the largest K" in err
    assert "score" not in err.splitlines()[0]
    assert not (tmp_path / "run").exists()
    assert finetune("select.per_neuron=16")[0] == 0


# data: 3


def text_image(data: Path) -> str:
    (data / "images" / "p01.png").write_text("this is text")
    return "images/p01.png: "


def no_masks(data: Path) -> str:
    for path in (data / "masks").iterdir():
        path.unlink()
    (data / "masks").rmdir()
    return "masks/ missing (found: images, splits); see data/README.md"


def one_mask_less(data: Path) -> str:
    (data / "masks" / "p00.png").unlink()
    return "images/p00.png: no mask named p00.* in masks/"


def wrong_size(data: Path) -> str:
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(data / "masks" / "p00.png")
    return "masks/p00.png: size mismatch, mask 30 x 20, image 48 x 40; export the mask again"


def all_empty(data: Path) -> str:
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            size = mask.size
        Image.new("L", size).save(path)
    return "all 2 masks of train are empty"


def truncated_image(data: Path) -> str:
    path = data / "images" / "p03.png"
    path.write_bytes(path.read_bytes()[:-300])
    return "images/p03.png: "


@pytest.mark.parametrize("spoil", [text_image, no_masks, one_mask_less, wrong_size, all_empty, truncated_image])
def test_bad_data_is_code_3(finetune: RunCommand, data: Path, tmp_path: Path, spoil: object) -> None:
    message = spoil(data)  # type: ignore[operator]
    code, err = finetune()
    assert code == 3
    assert message in err
    assert not (tmp_path / "run").exists()


def test_all_bad_files_are_listed_at_once(finetune: RunCommand, data: Path) -> None:
    messages = [text_image(data), wrong_size(data), truncated_image(data)]
    code, err = finetune()
    assert code == 3
    assert "data can't be used: 3 problem(s)" in err
    assert all(message in err for message in messages)


def test_a_missing_folder_is_code_3(finetune: RunCommand) -> None:
    code, err = finetune("data.dir=nowhere")
    assert code == 3
    assert "nowhere does not exist; set data.dir" in err


def test_evaluate_checks_data_too(finetune: RunCommand, run: RunCommand, data: Path, tmp_path: Path) -> None:
    assert finetune()[0] == 0
    merged = tmp_path / "run" / "merged.safetensors"
    message = wrong_size(data)
    code, err = run("evaluate", "--checkpoint", merged, "--data", data, "--split", "all", "--out", tmp_path / "e")
    assert code == 3
    assert message in err
    assert not (tmp_path / "e").exists()
    code, err = run("evaluate", "--checkpoint", merged, "--data", tmp_path / "nowhere")
    assert code == 3
    assert "nowhere" in err


# run folders: 7 and 8


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("place", ["file/run", "/proc/samtune/run"])
def test_an_unwritable_run_folder_is_code_7(finetune: RunCommand, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    code, err = finetune(run_dir=tmp_path / place)
    assert code == 7
    assert f"can't write to {tmp_path / place}: " in err
    assert "Choose a writable folder." in err
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unwritable_out_is_code_7(finetune: RunCommand, run: RunCommand, data: Path, tmp_path: Path) -> None:
    assert finetune("model.name=sam_tiny", "model.checkpoint=random")[0] == 0  # which export takes
    (tmp_path / "file").write_text("precious")
    merged, delta = (tmp_path / "run" / f"{name}.safetensors" for name in ("merged", "delta"))
    for command in (
        ("evaluate", "--checkpoint", merged, "--data", data, "--out", tmp_path / "file" / "e"),
        ("undo", merged, "--delta", delta, "--out", tmp_path / "file" / "base.safetensors"),
        ("export", merged, "--out", tmp_path / "file" / "m.pth"),
    ):
        code, err = run(*command)
        assert code == 7, err
        assert "can't write" in err
    assert (tmp_path / "file").read_text() == "precious"


def test_a_used_run_folder_is_code_8_and_intact(finetune: RunCommand, run: RunCommand, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finetune()[0] == 0
    before = files_of(folder)
    del before[MARKER]  # says who looked at it last
    code, err = finetune("run.seed=1")
    assert code == 8
    assert f"run folder {folder} holds an earlier run. Go on with it by --resume {folder}, choose another" in err
    after = files_of(folder)
    del after[MARKER]
    assert after == before


def test_overwrite_empties_run_folders_only(run: RunCommand, data: Path, weights: Path, tmp_path: Path) -> None:
    command = ("finetune", "--config", "polyp.yaml", *SMALL, f"data.dir={data}", f"model.checkpoint={weights}")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_text("precious")
    code, err = run(*command, "--run-dir", photos, "--overwrite")
    assert code == 8
    assert "photos is not empty and no run folder (it has no .samtune-run); it is not emptied" in err
    assert files_of(photos) == {"wedding.jpg": b"precious"}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".samtune-run").touch()
    (folder / "old.txt").write_text("old")
    code, err = run(*command, "model.checkpoint=gone.pth", "--run-dir", folder, "--overwrite")
    assert code == 4
    assert (folder / "old.txt").exists()  # emptied only when the new run can start
    assert run(*command, "--run-dir", folder, "--overwrite")[0] == 0
    assert not (folder / "old.txt").exists()


# numbers: 5


def test_a_diverging_run_is_code_5_and_keeps_its_history(finetune: RunCommand, tmp_path: Path) -> None:
    code, err = finetune("train.lr=1e30", "train.steps=10", "train.epochs=10", "train.warmup=0", "train.clip=null")
    assert code == 5
    assert "finite" in err
    assert (tmp_path / "run" / "history.jsonl").read_text().count("\n") >= 2
