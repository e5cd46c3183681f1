"""Segment Anything of transformers: the same logits, roles, published counts, folders read strictly and written."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from toy import prompts_of, toy_batch
from toy_hf import CONFIGS, SIZE, config_of, toy_hf

from samtune.errors import CheckpointError, ConfigError, DiskError
from samtune.models.hf.build import build_hf
from samtune.models.hf.families import FAMILIES
from samtune.models.hf.folder import family_of, save_folder
from samtune.models.hf.meta_sizes import HIERAS, config_of_hiera
from samtune.models.table import build_model, build_shapes
from samtune.types import Prompts

families = pytest.mark.parametrize("family", CONFIGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers for each family."""
    root = tmp_path_factory.mktemp("hf")
    for family in CONFIGS:
        toy_hf(family).save_stock(root / family)
    return root


@pytest.fixture
def sam2(folders: Path, tmp_path: Path) -> Path:
    """One of SAM 2, to be spoiled."""
    return Path(shutil.copytree(folders / "sam2", tmp_path / "sam2"))


def asked(prompts: Prompts | None) -> dict[str, torch.Tensor]:
    """Prompts as transformers takes them."""
    given = {
        "input_boxes": prompts and prompts.boxes_input,
        "input_points": prompts and prompts.points_input,
        "input_labels": prompts and prompts.labels,
    }
    return {name: value[:, None] for name, value in given.items() if value is not None}


@families
@pytest.mark.parametrize("kind", ["none", "box", "point"])
def test_logits_are_those_of_the_stock_forward(family: str, kind: str) -> None:
    model, batch = toy_hf(family), toy_batch(prompts=prompts_of(kind))
    pixels = model.normalise(batch.images, batch.valid())
    with torch.no_grad():
        found = model(batch)
        stock = model.net(pixel_values=pixels, **asked(batch.prompts), multimask_output=False).pred_masks[:, 0]
    assert found.shape == (len(batch), 1, SIZE // 4, SIZE // 4) and float(found.std()) > 0
    torch.testing.assert_close(found, stock, rtol=1e-5, atol=1e-5)


@families
def test_gradients_reach_everything_that_a_method_may_train(family: str) -> None:
    model, batch = toy_hf(family), toy_batch(prompts=prompts_of("box"))
    model(batch).square().mean().backward()
    roles, idle = model.roles(), set(model.idle())
    assert set(roles) == {name for name, _ in model.net.named_parameters()} == set(model.parts())
    without = {name for name, parameter in model.net.named_parameters() if parameter.grad is None}
    assert {name for name in without if roles[name] != "fixed"} == idle and idle
    assert {roles[name] for name in roles if name.startswith("mask_decoder.")} == {"decoder"}
    assert model.features(batch).shape == (len(batch), 32, SIZE // 16, SIZE // 16)
    assert model.features(batch).requires_grad


def test_the_meaning_of_parameters_by_family() -> None:
    sam2 = toy_hf("sam2")
    assert len(sam2.linears()["qkv"]) == len(sam2.block_modules()) == 5 and len(sam2.fused()) == 5
    assert sam2.roles()["vision_encoder.backbone.blocks.1.proj.weight"] == "linear"
    assert sam2.parts()["vision_encoder.neck.convs.0.weight"] == "neck"
    assert sam2.sublayers()["attention"]["vision_encoder.backbone.blocks.1.attn.proj"] == 32
    sam3 = toy_hf("sam3")
    assert len(sam3.linears()["qkv"]) == 6 and sam3.fused() == {}
    assert sam3.roles()["vision_encoder.neck.fpn_layers.0.scale_layers.0.weight"] == "fixed"  # rows are no neurons
    assert sam3.roles()["no_memory_embedding"] == "fixed"  # transformers adds it to a map that it leaves out
    assert toy_hf("sam_hf").roles()["vision_encoder.neck.layer_norm1.bias"] == "bias"  # as in GPS's released code
    assert list(toy_hf("edgetam").linears()) == ["pointwise"]


@pytest.mark.parametrize(
    ("size", "neurons"), [("tiny", 44_800), ("small", 58_624), ("base_plus", 99_472), ("large", 249_424)]
)
def test_k_1_of_the_published_sizes_of_sam_2(size: str, neurons: int) -> None:
    model = build_shapes("sam2", checkpoint="random", image_size=None, config=config_of_hiera(HIERAS[size]))
    roles = model.roles()
    weights = [p for name, p in model.net.named_parameters() if roles[name] in ("linear", "conv")]
    assert sum(len(weight) for weight in weights) == neurons and all(weight.is_meta for weight in weights)
    assert model.image_size == 1024


@pytest.mark.parametrize(
    ("family", "neurons", "side"),
    [("sam_hf", 84_224, 1024), ("sam_hq", 84_224, 1024), ("sam3", 317_952, 1008), ("edgetam", 26_864, 1024)],
)
def test_k_1_of_default_configs(family: str, neurons: int, side: int) -> None:
    model = build_shapes(family, checkpoint="random", image_size=None)
    roles = model.roles()
    assert sum(len(p) for n, p in model.net.named_parameters() if roles[n] in ("linear", "conv")) == neurons
    assert model.image_size == side


@families
def test_a_folder_is_what_transformers_loads_and_comes_back_bit_equal(family: str, folders: Path) -> None:
    model, batch = toy_hf(family), toy_batch(prompts=prompts_of("point"))
    loaded = build_model(family, checkpoint=folders / family)
    assert family_of(folders / family) == family and loaded.colours == model.colours
    before, after = model.net.state_dict(), loaded.net.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in after.values())  # products round by where their factors lie
    theirs: Any = getattr(transformers, f"{FAMILIES[family].prefix}Model").from_pretrained(folders / family).eval()
    pixels = model.normalise(batch.images, batch.valid())
    with torch.no_grad():
        wanted = model(batch)
        assert torch.equal(loaded(batch), wanted)
        stock = theirs(pixel_values=pixels, **asked(batch.prompts), multimask_output=False).pred_masks[:, 0]
    torch.testing.assert_close(stock, wanted, rtol=1e-5, atol=1e-5)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folders / family)
    assert [255 * value for value in processor.image_mean] == pytest.approx(model.pixel_mean.flatten().tolist())
    side = processor.pad_size if family in ("sam_hf", "sam_hq") else processor.size
    assert side["height"] == SIZE


def test_an_older_processor_and_tensors_of_videos(sam2: Path) -> None:
    images = json.loads((sam2 / "processor_config.json").read_text())["image_processor"]
    (sam2 / "processor_config.json").unlink()
    (sam2 / "preprocessor_config.json").write_text(json.dumps({**images, "image_mean": [0.1, 0.2, 0.3]}))
    state = load_file(sam2 / "model.safetensors")
    save_file({**state, "memory_encoder.x": torch.zeros(2)}, sam2 / "model.safetensors", metadata={"format": "pt"})
    (sam2 / "config.json").write_text((sam2 / "config.json").read_text().replace('"sam2"', '"sam2_video"'))
    model = build_model("sam2", checkpoint=sam2)
    assert model.pixel_mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])


def test_sizes_that_a_family_allows() -> None:
    model = build_hf("sam2", checkpoint="random", config=config_of("sam2"), image_size=96)
    batch = replace(toy_batch(), images=torch.zeros(2, 3, 96, 96, dtype=torch.uint8), sizes_input=((96, 96),) * 2)
    assert model.image_size == 96 and model(batch).shape[-1] == 24
    assert model.options["config"]["vision_config"]["backbone_feature_sizes"] == [[24, 24], [12, 12], [6, 6]]
    with pytest.raises(
        ConfigError, match=r"model\.image_size is 100, but sam2 needs a multiple of 32; the nearest is 96"
    ):
        build_hf("sam2", checkpoint="random", config=config_of("sam2"), image_size=100)
    with pytest.raises(ConfigError, match=r"sam_hf runs at the 64 px of its checkpoint only\. sam_vit_b"):
        build_hf("sam_hf", checkpoint="random", config=config_of("sam_hf"), image_size=128)
    with pytest.raises(ConfigError, match="sam3 needs a multiple of 16; the nearest is 96"):
        build_hf("sam3", checkpoint="random", config=config_of("sam3"), image_size=100)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        model = toy_hf("sam2").train()
        model.checkpointing = again
        model(toy_batch()).square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ConfigError, match="the blocks of edgetam can't recompute"):
        toy_hf("edgetam").checkpointing = True


def spoil(folder: Path, name: str) -> None:
    """Changes one thing in a folder."""
    state = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    match name:
        case "missing":
            del state["mask_decoder.iou_token.weight"]
        case "unknown":
            state["head.weight"] = torch.zeros(2)
        case "shape":
            state["mask_decoder.iou_token.weight"] = torch.zeros(1, 5)
        case "infinite":
            state["mask_decoder.iou_token.weight"].fill_(torch.inf)
        case "family":
            config["model_type"] = "sam3_tracker"
        case "architecture":
            config["model_type"] = "bert"
        case "values":
            config["mask_decoder_config"]["hidden_size"] = "wide"
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if name == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    if name in ("config.json", "processor_config.json", "model.safetensors"):
        (folder / name).unlink()
    if name == "no json":
        (folder / "config.json").write_text("{")
    texts = {
        "mean": {},
        "no images": {"image_processor": None},
        "grey": {"image_processor": {"image_mean": [0.5], "image_std": [0.5]}},
        "flat": {"image_processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.0, 0.5]}},
    }
    if name in texts:
        (folder / "processor_config.json").write_text(json.dumps(texts[name]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"do not fit its config\.json: 1 missing \(mask_decoder\.iou_token\.weight\)"),
        ("unknown", r"1 unknown \(head\.weight\)"),
        ("shape", r"1 of another shape \(mask_decoder\.iou_token\.weight\)"),
        ("infinite", r"holds NaN or infinity in 1 tensors"),
        ("family", r"architecture 'sam3_tracker', not 'sam2'\. Set model\.name to sam3\."),
        ("architecture", r"is no folder of a Sam2Model: it is of the architecture 'bert' \(architectures: Sam2Model\)"),
        ("values", r"impossible values in the config of sam2"),
        ("cut", r"the weights in .* can't be read"),
        ("config.json", r"it lacks config\.json \(it holds: model\.safetensors, processor_config\.json\)"),
        (
            "processor_config.json",
            r"it lacks processor_config\.json .* Get all files of https://huggingface\.co/facebook",
        ),
        ("model.safetensors", r"it lacks model\.safetensors"),
        ("no json", r"config\.json is damaged or no JSON"),
        ("mean", r"does not say how images are normalised"),
        ("no images", r"does not say how images are normalised"),
        (
            "grey",
            r"impossible colours in the processor of sam2: image_mean \[0\.5\] and .*, expected three numbers each",
        ),
        ("flat", r"and image_std \[0\.5, 0\.0, 0\.5\], expected three "),
    ],
)
def test_folders_that_are_refused(sam2: Path, name: str, message: str) -> None:
    spoil(sam2, name)
    with pytest.raises(CheckpointError, match=message):
        build_model("sam2", checkpoint=sam2)


def test_a_config_in_a_file_that_makes_no_network() -> None:
    given = config_of("sam2")
    odd = {**given, "mask_decoder_config": {**given["mask_decoder_config"], "num_attention_heads": 0}}
    for asked_on in ("cpu", "meta"):
        with torch.device(asked_on), pytest.raises(CheckpointError, match="impossible values in the config of sam2"):
            build_hf("sam2", checkpoint="random", config=odd)
    for processor in ({}, {"image_processor": 5}):
        with pytest.raises(CheckpointError, match="impossible colours in the processor of sam2: image_mean None"):
            build_hf("sam2", checkpoint="random", config=given, processor={"a": 1, **processor})


def test_a_config_brings_nothing_of_the_hub() -> None:
    given: dict[str, Any] = deepcopy(config_of("edgetam"))
    given["vision_config"]["backbone_config"]["architecture"] = "hf-hub:any/any"
    with pytest.raises(CheckpointError, match="its trunk 'hf-hub:any/any' is no model of timm's own"):
        build_hf("edgetam", checkpoint="random", config=given)
    given = config_of("sam2")
    model = build_hf("sam2", checkpoint="random", config={**given, "attn_implementation": "kernels-community/any"})
    assert model.net.config.vision_config._attn_implementation == model.net.config._attn_implementation == "sdpa"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    class Full:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {}

        def save_pretrained(self, folder: Path, *, state_dict: object) -> None:
            (folder / "model.safetensors").write_bytes(b"x")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskError, match="No space left on device"):
        save_folder(Full(), {}, tmp_path / "out", left_out="mask_decoder.classes.")
    assert list(tmp_path.iterdir()) == []


def test_files_names_and_machines_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sam_vit_b.pth"
    file.write_bytes(b"x")
    with pytest.raises(
        CheckpointError,
        match=r"is a file, damaged .*: the checkpoint of sam_hf is a folder .* model\.name to sam_vit_b",
    ):
        build_model("sam_hf", checkpoint=file)
    with pytest.raises(CheckpointError, match=r"nothing does not exist: the checkpoint of sam2 is a folder"):
        build_model("sam2", checkpoint=tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"sam_hq gives one mask and has no class tokens.* sam2, sam3, edgetam"):
        build_model("sam_hq", checkpoint="random", classes=3, channels=3)
    with pytest.raises(ConfigError, match=r"model\.channels is 4, but sam2 takes 3 only.* sam_lite"):
        build_model("sam2", checkpoint="random", channels=4)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'samtune\[hf\]'"):
        build_model("sam2")  # and nothing is downloaded for it
