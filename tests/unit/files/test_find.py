"""Which model a command means, and models that were not tuned."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from descriptions import load_classes, load_masks, read_masks

from samtune.base.tensors import save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.audit import inspect_file
from samtune.files.export.pth import export_pth
from samtune.files.find import find_model
from samtune.models.sam.specs import VITS
from samtune.models.table import build_model
from samtune.tasks.masks.predict import Predictor
from samtune.tasks.masks.service import MaskService
from samtune.tasks.table import describe_file, task_of_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["merged.safetensors", "bundle.safetensors"])
def test_a_run_folder_stands_for_its_model(name: str, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "run").mkdir()
    for file in ("selection.safetensors", name):
        (here / "run" / file).touch()
    with caplog.at_level(logging.INFO, logger="samtune"):
        assert find_model("run") == here / "run" / name
    assert caplog.messages == [f"run is a run folder: taking its {name}"]
    assert find_model(here / "run" / name) == here / "run" / name


def test_a_name_stays_a_name_unless_there_is_such_a_file(here: Path) -> None:
    assert find_model("sam_tiny") == Path("sam_tiny")
    assert find_model("gone") == here / "gone"
    (here / "sam_tiny").mkdir()
    assert find_model("sam_tiny") == here / "sam_tiny"
    with pytest.raises(
        CheckpointError, match=r"sam_tiny is a folder, and a file is needed\. It holds: no \.safetensors"
    ):
        load_masks(find_model("sam_tiny"))


@pytest.mark.parametrize("name", ["sam_tiny", "sam_lite"])
def test_an_untuned_model_answers_prompts(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="samtune"):
        model, info = load_masks(Path(name))
    stock = build_model(name)
    assert all(torch.equal(t, stock.net.state_dict()[n]) for n, t in model.net.state_dict().items())
    assert (info.model, info.prompt, info.image_size) == (name, "box", 256)
    assert info.base_hash == state_hash(stock.net.state_dict())
    for values, buffer in ((info.pixel_mean, stock.pixel_mean), (info.pixel_std, stock.pixel_std)):
        torch.testing.assert_close(torch.tensor(values), buffer.flatten())
    assert f"{name} as it was published, not tuned: it segments what a box or points show" in caplog.text
    assert task_of_file(Path(name)).name == "segmentation"
    assert describe_file(Path(name)) == read_masks(Path(name)) == info.model_copy(update={"base_hash": ""})


def test_a_file_of_weights_alone_is_the_model_that_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    stock = build_model("sam_tiny", checkpoint="random")
    for file, content in (("sam.pth", stock.net.state_dict()), ("sam.pt", {"model_state": stock.net.state_dict()})):
        torch.save(content, file)
        with caplog.at_level(logging.INFO, logger="samtune"):
            model, info = load_masks(find_model(file))
        assert (info.model, info.prompt, info.image_size) == ("sam_tiny", "box", 256)
        assert info.base_hash == state_hash(stock.net.state_dict()) == state_hash(model.net.state_dict())
        assert f"sam_tiny of {find_model(file)}, which says nothing of a run: it segments what" in caplog.text
        assert task_of_file(find_model(file)).name == "segmentation"
        export_pth(find_model(file), Path("out.pth"))
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    answer = MaskService.from_file(Path("sam.pth"), device="cpu").answer(
        picture, {"box": [[13.0, 8.0, 47.0, 32.0]]}, []
    )
    assert len(answer.content) > 50
    assert Predictor.from_file(Path("sam.pth"), device="cpu").untuned


def test_what_a_file_of_weights_alone_is_not(here: Path) -> None:
    torch.save({"weight": torch.ones(2)}, "other.pth")
    told = r"other\.pth holds weights alone, and nothing of a run\. .* \(1 tensors, such as weight\)"
    with pytest.raises(CheckpointError, match=told):
        task_of_file(here / "other.pth")
    torch.save({"vision_encoder.weight": torch.ones(2)}, "theirs.pth")
    with pytest.raises(
        CheckpointError, match=r"theirs\.pth holds .* It is of a model of transformers: give its folder"
    ):
        task_of_file(here / "theirs.pth")
    state = dict(build_model("sam_tiny", checkpoint="random").net.state_dict())
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, "less.pth")
    with pytest.raises(CheckpointError, match=r"less\.pth does not fit the model .* 1 missing \(mask_decoder\.iou"):
        load_masks(here / "less.pth")
    (here / "config.json").write_text("{}")
    save_tensors(here / "model.safetensors", {"weight": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"its format: pt, .* a part of {here}, a folder of transformers: give that"
    ):
        task_of_file(here / "model.safetensors")


def test_it_predicts_by_a_box() -> None:
    predictor = Predictor.from_file("sam_tiny", device="cpu")
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8)
    picture[10:30, 15:45] = 255
    found = predictor.predict(picture.numpy(), boxes_xyxy=[13, 8, 47, 32]).mask
    assert found[12:28, 17:43].mean() > 0.9 and found.mean() < 0.5
    about = MaskService.from_file(Path("sam_tiny"), device="cpu").about()
    assert (about["model"], about["prompt"]) == ("sam_tiny", "box") and len(about["base_hash"]) == 64


def test_nothing_is_drawn_to_describe_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.models.sam.vit.load_sam", lambda model, _, **added: kinds.append(model.device.type))
    kinds: list[str] = []
    monkeypatch.setitem(VITS, "sam_vit_h", toy.SPEC)
    assert describe_file(Path("sam_vit_h")).image_size == toy.SIZE
    assert set(kinds) == {"meta"}


def test_inspect_takes_a_name() -> None:
    facts = inspect_file("sam_tiny")
    state = build_model("sam_tiny").net.state_dict()
    assert facts == {
        "model": "sam_tiny",
        "tensors": len(state),
        "numbers": sum(t.numel() for t in state.values()),
        "types": "float32",
        "base_hash": state_hash(state),
    }
    with pytest.raises(
        CheckpointError, match=r"sam_tini is neither a checkpoint file nor a model\. Known models: sam_l"
    ):
        inspect_file("sam_tini")


def test_a_classifier_is_not_used_untuned() -> None:
    with pytest.raises(CheckpointError, match="is a segmentation model, but a classification model is needed"):
        load_classes(Path("sam_tiny"))
    with pytest.raises(
        CheckpointError, match=r"vit_mini is a classifier, which has no classes before it is tuned\. Giv"
    ):
        load_classes(find_model("vit_mini"))
