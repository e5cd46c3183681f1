"""Models on the command line: by file, by run folder, by name; and what is said of those that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from descriptions import mask_description
from PIL import Image

from samtune.base.tensors import read_metadata, save_tensors, state_hash
from samtune.files.delta import save_delta
from samtune.files.merged import save_merged
from samtune.models.table import build_model
from samtune.selection import Selection, save_selection

Run = Callable[..., tuple[int, str, str]]
TUNED = "mask_decoder.mask_tokens.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a `sam_tiny` from random weights; `base.safetensors` beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    model = build_model("sam_tiny", checkpoint="random", image_size=64)
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    with torch.no_grad():
        model.net.get_parameter(TUNED).mul_(1.5)
    info, chosen = mask_description(image_size=64, base_hash=state_hash(base)), Selection({}, (TUNED,))
    save_tensors(folder.parent / "base.safetensors", base, {})
    save_merged(folder / "merged.safetensors", model, info)
    save_selection(chosen, folder / "selection.safetensors", {})
    after, delta = model.net.state_dict(), folder / "delta.safetensors"
    save_delta(delta, base=base, merged=after, selection=chosen, metadata=info.to_metadata())
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two grey pictures with a white rectangle."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = np.full((48, 64, 3), 60, dtype=np.uint8)
    picture[12:36, 20:50] = 250
    for name in "ab":
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def test_a_run_folder_is_a_checkpoint(run: Run, trained: Path, pictures: Path) -> None:
    code, out, err = run("predict", "--checkpoint", trained, pictures / "a.png", "--out", "o", "--device", "cpu")
    assert (code, out) == (0, "1 masks in o\n")
    assert f"{trained} is a run folder: taking its merged.safetensors" in err
    assert run("inspect", trained)[1].splitlines()[1].split() == ["file", str(trained / "merged.safetensors")]
    base, selection = trained.parent / "base.safetensors", trained / "selection.safetensors"
    code, out, _ = run("audit", base, trained, selection)
    assert (code, out.splitlines()[1]) == (0, "512 of 512 selected entries changed")
    assert run("diff", trained, trained)[1] == "no differences\n"


def test_folders_of_what_is_written_are_made(run: Run, trained: Path, tmp_path: Path) -> None:
    base, delta = trained.parent / "base.safetensors", trained / "delta.safetensors"
    for number, command in enumerate(
        (("export", trained), ("apply", base, "--delta", delta), ("undo", trained, "--delta", delta))
    ):
        out = tmp_path / "not" / str(number) / "there.pth"
        assert run(*command, "--out", out)[:2] == (0, f"{out}\n")
        assert out.is_file()
        code, _, err = run(*command, "--out", out.parent)  # a folder
        assert code == 7
        assert f"can't write to {out.parent}: Is a directory. Choose" in err and "Free some space" not in err


def test_an_untuned_model_predicts_by_its_name(run: Run, pictures: Path) -> None:
    given = ("predict", "--checkpoint", "sam_tiny", pictures / "a.png", "--out", "o", "--device", "cpu")
    code, out, err = run(*given, "--box", "18,10,52,38")
    assert (code, out) == (0, "1 masks in o\n")
    assert "sam_tiny as it was published, not tuned: it segments what a box or points show" in err
    assert "each of" not in err
    with Image.open("o/a.png") as mask:
        found = np.asarray(mask) > 0
    assert found[14:34, 22:48].mean() > 0.9 and found.mean() < 0.5
    code, _, err = run(*given)
    assert code == 0
    assert "an untuned model segments what a box or points show" in err and "was tuned with" not in err
    code, _, err = run(*given, "--point", "30,20")
    assert code == 0 and "was tuned with" not in err and "means little" not in err


def test_one_box_for_many_images_is_refused(run: Run, pictures: Path) -> None:
    given = ("predict", "--checkpoint", "sam_tiny", pictures, "--out", "o", "--device", "cpu")
    for prompt in (("--box", "18,10,52,38"), ("--point", "30,20")):
        code, _, err = run(*given, *prompt)
        assert code == 2 and not Path("o").exists()
        assert "--box and --point are in pixels of one image, and 2 were given" in err


def test_bad_models_are_code_4_in_one_line(run: Run, trained: Path, pictures: Path) -> None:
    content = bytearray((trained / "merged.safetensors").read_bytes())
    content[-1] ^= 1
    Path("bad.safetensors").write_bytes(content)
    Path("link.safetensors").symlink_to("nowhere")
    delta, selection = trained / "delta.safetensors", trained / "selection.safetensors"
    base, out = trained.parent / "base.safetensors", ("--out", "o.safetensors")
    for bad, reason in (
        ("bad.safetensors", "bad.safetensors is damaged: its tensors differ"),
        ("link.safetensors", "link.safetensors is a link to nowhere, which does not exist."),
        ("gone.safetensors", "gone.safetensors"),
        (".", " is a folder, and a file is needed. It holds: bad.safetensors, link.safetensors."),
    ):
        for command in (
            ("predict", "--checkpoint", bad, pictures, *out),
            ("evaluate", "--checkpoint", bad, "--data", pictures),
            ("apply", bad, "--delta", delta, *out),
            ("undo", bad, "--delta", delta, *out),
            ("export", bad, *out),
            ("inspect", bad),
            ("diff", base, bad),
            ("audit", base, bad, selection),
        ):
            code, shown, err = run(*command)
            last = err.strip().splitlines()[-1]
            assert (code, shown) == (4, ""), (command, err)
            assert last.startswith("error: ") and reason in last, command
            assert "Traceback" not in err and "bug" not in err
    assert not Path("o.safetensors").exists()


def test_what_apply_and_undo_write_proves_its_content(run: Run, trained: Path) -> None:
    base, delta = trained.parent / "base.safetensors", trained / "delta.safetensors"
    assert run("apply", base, "--delta", delta, "--out", "merged.safetensors")[0] == 0
    assert Path("merged.safetensors").read_bytes() == (trained / "merged.safetensors").read_bytes()
    assert run("undo", trained, "--delta", delta, "--out", "base.safetensors")[0] == 0
    assert read_metadata(Path("base.safetensors")).keys() == {"base_hash"}
    content = bytearray(Path("base.safetensors").read_bytes())
    content[-1] ^= 1
    Path("base.safetensors").write_bytes(content)
    code, _, err = run("apply", "base.safetensors", "--delta", delta, "--out", "o")
    assert code == 4 and "base.safetensors is damaged: its tensors differ from what was written" in err
