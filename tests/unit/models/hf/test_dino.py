"""DINOv2 and DINOv3 of transformers: the stock tokens, heads of both kinds, folders, files, names of the hub."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from toy import toy_batch
from toy_dino import CONFIGS, SIZE, toy_dino
from toy_hf import toy_hf
from toyvit import labelled_batch

from samtune.errors import CheckpointError, ConfigError
from samtune.models.hf.dino import HEAD_FILE
from samtune.models.hf.families import DINOS
from samtune.models.table import build_model, build_shapes
from samtune.selection import select
from samtune.tuning import attach, merge

families = pytest.mark.parametrize("family", CONFIGS)


def stock_of(family: str) -> Any:
    """The class of transformers."""
    return getattr(transformers, f"{DINOS[family].prefix}Model")


@families
def test_the_head_reads_the_tokens_of_the_stock_network(family: str) -> None:
    model, batch = toy_dino(family), labelled_batch()
    pixels = (batch.images - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        tokens = model.net.encoder(pixel_values=pixels).last_hidden_state
        first = 1 if family == "dinov2" else 4  # DINOv3 has three registers
        wanted = torch.cat((tokens[:, 0], tokens[:, first:].mean(1)), 1)
        assert tokens.shape == (6, first + 16, 32)
        torch.testing.assert_close(model.features(batch), wanted)
        torch.testing.assert_close(model(batch), model.net.head(wanted))


@families
def test_gradients_reach_all_but_what_hides_patches(family: str) -> None:
    model = toy_dino(family).train()
    model(labelled_batch()).square().mean().backward()
    without = [name for name, parameter in model.net.named_parameters() if parameter.grad is None]
    roles = model.roles()
    assert without == ["encoder.embeddings.mask_token"] and roles[without[0]] == "fixed"
    assert set(roles) == set(model.parts()) == {name for name, _ in model.net.named_parameters()}
    assert roles["head.weight"] == "head" and roles["encoder.embeddings.cls_token"] == "position"
    assert model.parts()["head.weight"] == "head" and model.stem_part() == "embeddings"
    scale = next(name for name in roles if name.endswith("layer_scale1.lambda1"))
    assert roles[scale] == "bias"
    assert len(model.linears()["qkv"]) == 6 and model.fused() == {}


def test_gated_layers_have_their_names() -> None:
    for family, more in (("dinov2", {"use_swiglu_ffn": True}), ("dinov3", {"use_gated_mlp": True})):
        model = toy_dino(family, **more)
        assert {target: len(names) for target, names in model.linears().items()} == {
            "qkv": 6, "proj": 2, "fc1": 4, "fc2": 2,
        }  # fmt: skip
        assert len(model.sublayers()["mlp"]) == 2


def test_dinov3_stays_still_while_it_trains() -> None:
    model, batch = toy_dino("dinov3").train(), labelled_batch()
    with torch.no_grad():
        assert torch.equal(model(batch), model(batch))
    assert model.net.encoder.config.pos_embed_rescale is None


@families
def test_a_folder_is_what_transformers_loads_and_the_head_lies_beside_it(family: str, tmp_path: Path) -> None:
    model, batch = toy_dino(family), labelled_batch()
    model.save_stock(tmp_path / "dino")
    head = load_file(tmp_path / "dino" / HEAD_FILE)
    assert head.keys() == {"head.weight", "head.bias"} and torch.equal(head["head.bias"], model.net.head.bias)
    same = build_model(family, checkpoint=tmp_path / "dino", classes=3, head="checkpoint")
    assert torch.equal(same(batch), model(batch))
    stock = stock_of(family).from_pretrained(tmp_path / "dino").eval()
    loaded = build_model(family, checkpoint=tmp_path / "dino", classes=3)
    assert loaded.image_size == SIZE and loaded.colours == model.colours
    assert loaded.interpolation == ("bicubic" if family == "dinov2" else "bilinear")
    pixels = (batch.images - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).pooler_output, model.tokens(pixels)[:, 0])
        assert torch.equal(loaded.features(batch), model.features(batch))
        assert not torch.equal(loaded.net.head.weight, model.net.head.weight)  # a new one
    picture = torch.zeros(3, 100, 80, dtype=torch.uint8)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(tmp_path / "dino")
    assert processor(picture, return_tensors="pt").pixel_values.shape == (1, 3, SIZE, SIZE)


def test_names_of_older_files_become_those_of_the_library(tmp_path: Path) -> None:
    """The published DINOv3 has `layer.N`, which is `model.layer.N` in transformers 5."""
    model = toy_dino("dinov3")
    model.save_stock(tmp_path)
    state = {name.replace("model.layer", "layer"): t for name, t in model.net.encoder.state_dict().items()}
    assert any(name.startswith("layer.0") for name in state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = build_model("dinov3", checkpoint=tmp_path, classes=2)
    for name, tensor in model.net.encoder.state_dict().items():
        assert torch.equal(loaded.net.encoder.state_dict()[name], tensor)
    del state["layer.1.norm2.weight"]
    save_file({**state, "layer.9.x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.layer\.1\.norm2\.weight\), 1 unknown"):
        build_model("dinov3", checkpoint=tmp_path, classes=2)


def test_a_file_gives_its_head_or_a_new_one(tmp_path: Path) -> None:
    model, file = toy_dino("dinov2"), tmp_path / "dino.pth"
    torch.save(model.net.state_dict(), file)
    how: Any = {"checkpoint": file, "classes": 3, "config": CONFIGS["dinov2"], "image_size": SIZE}
    kept, new = build_model("dinov2", head="checkpoint", **how), build_model("dinov2", seed=5, **how)
    assert torch.equal(kept.net.head.weight, model.net.head.weight) and kept.head_seed is None
    assert not torch.equal(new.net.head.weight, model.net.head.weight) and new.head_seed == 5
    assert torch.equal(new.net.encoder.layernorm.bias, model.net.encoder.layernorm.bias)
    with pytest.raises(CheckpointError, match=r"of another shape \(e\.g\. head"):
        build_model("dinov2", head="checkpoint", **{**how, "classes": 4})
    torch.save({"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"layout of Meta's own code or of timm.*vit_base_patch14_dinov2"):
        build_model("dinov2", **how)


def test_sizes_and_published_shapes() -> None:
    model = toy_dino("dinov2")
    assert model.options["config"]["image_size"] == 48  # the table of positions is resampled while it runs
    for family, size, patch in (("dinov2", 224, 14), ("dinov3", 224, 16)):
        shapes = build_shapes(family, checkpoint="random", image_size=None, classes=2)
        assert shapes.image_size == size and all(p.is_meta for p in shapes.parameters())
        weights = [p for n, p in shapes.net.named_parameters() if shapes.roles()[n] in ("linear", "conv")]
        assert sum(len(weight) for weight in weights) == 83_712  # as ViT-B/16: 12 x 6,912 + 768
        with pytest.raises(ConfigError, match=rf"{family} needs a multiple of its patch, {patch}; the nearest is"):
            build_shapes(family, checkpoint="random", image_size=100, classes=2)


def test_maps_are_four_times_the_grid_and_see_no_padding() -> None:
    for family in CONFIGS:
        model = toy_dino(family, grid=True)
        batch = toy_batch()
        with torch.no_grad():
            assert model.features(batch).shape == (2, 32, 8, 8)  # 64 px in patches of 8
            low = model(batch)
            assert low.shape == (2, 3, 32, 32)
            noise = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8)
            other = replace(batch, images=torch.where(batch.valid(), batch.images, noise))
            assert torch.equal(model(other), low)
        assert model.head_module() is None and not model.answers_prompts
        assert {role for name, role in model.roles().items() if name.startswith("head.")} == {"head"}


@families
@pytest.mark.parametrize("method", ["gps", "lora", "linear"])
def test_methods_tune_and_merge_a_model_of_maps(family: str, method: str) -> None:
    options: dict[str, Any] = {"gps": {"criterion": "magnitude"}, "lora": {"rank": 2}}.get(method, {})
    model, batch = toy_dino(family, grid=True), toy_batch()
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    selection = select(model, None, name=method, **options)
    assert {name for name in base if name.startswith("head.")} <= set(selection.whole)
    optimizer = torch.optim.SGD(attach(model, selection).values(), lr=0.1)
    model(batch).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        tuned = model(batch)
        merge(model)
        torch.testing.assert_close(model(batch), tuned, rtol=1e-4, atol=1e-4)
    changed = {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, base[name])}
    assert changed <= set(selection.changes({name: tensor.shape for name, tensor in base.items()}))


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.channels is 4, but dinov2 takes 3 only"):
        build_model("dinov2", checkpoint="random", classes=2, channels=4)
    with pytest.raises(ConfigError, match=r"model\.options has depth, which dinov2 does not have: it takes config and"):
        build_model("dinov2", checkpoint="random", classes=2, depth=3)
    with pytest.raises(ConfigError, match=r"head=checkpoint needs a head, but random has none"):
        build_model("dinov3", checkpoint="random", classes=2, head="checkpoint")
    with pytest.raises(CheckpointError, match="impossible values in the config of dinov2"):
        build_model("dinov2", checkpoint="random", classes=2, config={"hidden_size": "wide"})
    with pytest.raises(ConfigError, match="dinov2 is a classifier: give classes=N"):
        build_model("dinov2", checkpoint="random")
    file = tmp_path / "dinov2_vitb14_pretrain.pth"
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is a file, damaged .* Meta's own files fit timm's models"):
        build_model("dinov2", checkpoint=file, classes=2)
    toy_dino("dinov2").save_stock(tmp_path / "dino")
    with pytest.raises(CheckpointError, match=r"architecture 'dinov2', not 'dinov3_vit'\. Set model\.name to dinov2"):
        build_model("dinov3", checkpoint=tmp_path / "dino", classes=2)
    with pytest.raises(CheckpointError, match=r"architecture 'dinov2', not 'sam2'\. Set model\.name to dinov2"):
        build_model("sam2", checkpoint=tmp_path / "dino")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'samtune\[hf\]'"):
        build_model("dinov2", classes=2)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub of three repositories: what it would download lies in folders."""
    toy_dino("dinov3").save_stock(tmp_path / "some" / "dino")
    toy_hf("sam2").save_stock(tmp_path / "some" / "sam2-small")
    (tmp_path / "some" / "bert").mkdir()
    (tmp_path / "some" / "bert" / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertModel"]})
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / name))
    return tmp_path


def test_a_repository_is_a_name_of_a_model(hub: Path) -> None:
    sam = build_model("some/sam2-small")
    assert sam.name == "sam2" and torch.equal(sam(toy_batch()), toy_hf("sam2")(toy_batch()))
    dino = build_model("some/dino", classes=2, head="new")
    assert dino.name == "dinov3" and dino.net.head.out_features == 2
    again = build_shapes("some/dino", checkpoint=hub / "some" / "dino", image_size=64, classes=2, pixel_seed=1)
    assert again.image_size == 64 and again.head_module() is None
    shapes = build_shapes("some/sam2-small", checkpoint=None, image_size=None, classes=3)  # of that one, not of tiny
    sam.add_classes(3)
    assert [p.shape for p in shapes.parameters()] == [p.shape for p in sam.parameters()]
    with pytest.raises(CheckpointError, match=r"some/bert is of the architecture 'bert' \(architectures: BertModel\)"):
        build_model("some/bert")
    with pytest.raises(ConfigError, match=r"some/sam2-small is a sam2, which gives masks, not classes"):
        build_model("some/sam2-small", classes=2, head="new")
