"""What a user gets wrong with models of transformers: each is an error that says what was given and what helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from meta_files import meta_state
from safetensors.torch import save_file
from toy_dino import toy_dino
from toy_hf import toy_hf

from samtune.cli import main as cli
from samtune.errors import CheckpointError
from samtune.models.table import build_model


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def refuse(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the hub answer with an error."""

    def answer(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)


def answered(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("HEAD", "https://huggingface.co/x"))


@pytest.mark.usefixtures("no_cache")
def test_a_gated_model_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(GatedRepoError("401 Client Error. Access is restricted.", response=answered(401)), monkeypatch)
    for name in ("sam3", "facebook/sam3", "some/copy"):  # the table knows it of the first alone
        with pytest.raises(
            CheckpointError, match=r"GatedRepoError: 401 .* accept its licence there, then `hf auth log"
        ):
            build_model(name)
    with pytest.raises(CheckpointError, match=r"accept its licence there"):
        build_model("dinov3", classes=2)
    refuse(RepositoryNotFoundError("404 Client Error.", response=answered(404)), monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"can't get no/where .*RepositoryNotFoundError: 404.*model\.checkpoint=FOLDER takes it"
    ) as caught:
        build_model("no/where")
    assert "gated" not in str(caught.value)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("offline", [False, True])
def test_no_network(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        refuse(httpx.ConnectError("no route to host"), monkeypatch)
    reason = "Offline" if offline else "ConnectError: no route to host"
    files = r"config\.json, processor_config\.json or preprocessor_config\.json, and all \*\.safetensors of https://"
    for name, hub in (("sam2", "facebook/sam2.1-hiera-tiny"), ("dinov2", "facebook/dinov2-base")):
        more: dict[str, Any] = {"classes": 2} if name == "dinov2" else {}
        with pytest.raises(CheckpointError, match=rf"can't get {hub} .*{reason}.*{files}huggingface\.co/{hub} into a"):
            build_model(name, **more)


def save_unknown(folder: Path, names: tuple[str, ...], **config: object) -> None:
    """Writes a folder of a network that is not known."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "fastsam", "architectures": ["FastSam"], **config}))
    save_file({name: torch.zeros(2) for name in names}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("wrapper", ["", "fastsam."])
def test_an_unknown_architecture_is_told_by_its_modules(wrapper: str, tmp_path: Path) -> None:
    names = ("backbone.stem.weight", "mask_decoder.head.weight")
    save_unknown(tmp_path / "x", tuple(f"{wrapper}{name}" for name in names))
    with pytest.raises(CheckpointError) as caught:
        build_model("sam2", checkpoint=tmp_path / "x")  # without a processor, which is not what matters
    said = str(caught.value)
    assert "x is no folder of a Sam2Model: it is of the architecture 'fastsam' (architectures: FastSam)" in said
    assert "Modules found: backbone, mask_decoder; missing of a Sam2Model: vision_encoder, prompt_encoder." in said
    assert "Known: sam_hf (sam), " in said
    with pytest.raises(CheckpointError, match=r"found: backbone, mask_decoder; missing of a Dinov2Model: embeddings, "):
        build_model("dinov2", checkpoint=tmp_path / "x", classes=2)


def test_an_unknown_repository_is_told_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_unknown(tmp_path / "x", ("a.b",), vision_config={}, text_config={})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "x"))
    missing = "missing of a SamModel: prompt_encoder, mask_decoder"
    with pytest.raises(CheckpointError, match=rf"^some/x is of .* Modules found: vision_encoder, text; {missing}"):
        build_model("some/x")


def test_commands_tell_folders_that_segment_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_unknown(tmp_path / "x", ("a.b", "c.d"))
    toy_dino("dinov2").save_stock(tmp_path / "dino")
    capsys.readouterr()  # what saving says, where an earlier test has switched logs on
    for folder, said in (("x", "Modules found: a, c; missing of a SamModel: vision_"), ("dino", "is a dinov2, which")):
        for command in (("inspect",), ("predict", str(tmp_path), "--out", str(tmp_path), "--checkpoint")):
            with pytest.raises(SystemExit, match=r"[^0]"):
                cli.main([*command, str(tmp_path / folder)])
            shown = " ".join(capsys.readouterr().err.split())
            assert said in shown and shown.startswith("error: ")


@pytest.mark.parametrize("name", ["sam_hf", "sam_hq", "edgetam", "dinov2", "dinov3"])
def test_metas_file_where_a_folder_is_expected(name: str, tmp_path: Path) -> None:
    more = {"classes": 2} if name.startswith("dino") else {}
    torch.save({"model": meta_state("sam2")}, tmp_path / "sam2.pt")
    torch.save({"image_encoder.blocks.0.norm1.weight": torch.zeros(2)}, tmp_path / "sam_vit_b.pth")
    for file, family in (
        ("sam2.pt", "SAM 2: set model.name to sam2"),
        ("sam_vit_b.pth", "SAM 1: set model.name to sam"),
    ):
        with pytest.raises(
            CheckpointError, match=rf"is a file \(It is Meta's file of a {family}.*{name} is a folder of"
        ):
            build_model(name, checkpoint=tmp_path / file, **more)
    toy_hf("sam2").save_stock(tmp_path / "sam2")
    with pytest.raises(CheckpointError, match=r"is a file \(It is of a model of transformers: give its folder"):
        build_model(name, checkpoint=tmp_path / "sam2" / "model.safetensors", **more)


@pytest.mark.parametrize("name", ["sam_lite", "sam_vit_b", "vit_mini"])
def test_a_folder_where_a_file_is_expected(name: str, tmp_path: Path) -> None:
    toy_hf("sam_hf").save_stock(tmp_path / "sam")
    with pytest.raises(
        CheckpointError, match=r"is a folder of transformers, and this model's checkpoint is a file\. Set"
    ):
        build_model(name, checkpoint=tmp_path / "sam", **({"classes": 2} if name == "vit_mini" else {}))


def test_a_damaged_file_of_metas(tmp_path: Path) -> None:
    torch.save({"model": meta_state("sam2")}, tmp_path / "whole.pt")
    (tmp_path / "sam2.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:9000])
    with pytest.raises(CheckpointError, match=r"sam2\.pt is a file, damaged or without weights: .*Meta's own file"):
        build_model("sam2", checkpoint=tmp_path / "sam2.pt")


def test_a_dino_without_a_processor(tmp_path: Path) -> None:
    toy_dino("dinov2").save_stock(tmp_path / "dino")
    (tmp_path / "dino" / "processor_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no folder of a Dinov2Model: it lacks processor_config\.json \(it holds"
    ):
        build_model("dinov2", checkpoint=tmp_path / "dino", classes=2)
    shutil.rmtree(tmp_path / "dino")
    (tmp_path / "dino").mkdir()
    with pytest.raises(
        CheckpointError, match=r"lacks config\.json, processor_config\.json, model\.safetensors \(it ho"
    ):
        build_model("dinov2", checkpoint=tmp_path / "dino", classes=2)


def test_a_folder_of_another_family_beside_a_config_is_told(tmp_path: Path) -> None:
    toy_hf("sam3").save_stock(tmp_path / "sam3")
    toy_dino("dinov3").save_stock(tmp_path / "dinov3")
    sam, dino = toy_hf("sam2").options, toy_dino("dinov2").options
    with pytest.raises(CheckpointError, match=r"architecture 'sam3_tracker', not 'sam2'\. Set model\.name to sam3"):
        build_model("sam2", checkpoint=tmp_path / "sam3", **sam)
    with pytest.raises(CheckpointError, match=r"architecture 'dinov3_vit', not 'dinov2'\. Set model\.name to dinov3"):
        build_model("dinov2", checkpoint=tmp_path / "dinov3", classes=2, **dino)
