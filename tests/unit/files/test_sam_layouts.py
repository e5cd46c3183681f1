"""SAM 1 in the layouts of Meta and of transformers: equal logits, and files of one that serve the other."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from toy import ENTRY, SPEC, prompts_of, toy_batch, toy_model
from toy_hf import toy_hf

from samtune.base.tensors import state_hash
from samtune.errors import CheckpointError
from samtune.files.audit import audit_files, diff_files
from samtune.files.delta import apply_delta, save_delta, undo_delta
from samtune.files.export.folder import export_folder
from samtune.files.export.pth import export_pth
from samtune.files.layouts import config_of, selection_for, twin_model, twin_of
from samtune.files.merged import load_merged, save_merged
from samtune.models.backbone import Backbone
from samtune.models.hf.build import build_hf
from samtune.models.hf.layout import layout_of, renamed
from samtune.models.sam.specs import VITS
from samtune.models.table import MODELS
from samtune.selection import Selection, save_selection, select
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tuning import attach, merge


@pytest.fixture(autouse=True)
def a_toy_of_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VITS, "toy", SPEC)
    monkeypatch.setitem(MODELS, "toy", ENTRY)


def twin(meta: Backbone) -> Backbone:
    """The same weights in the layout of transformers."""
    model = build_hf("sam_hf", checkpoint="random", config=config_of(SPEC))
    model.net.load_state_dict(renamed(meta.net.state_dict(), "transformers"))
    return model


def describe(model: Backbone, base: str = "0") -> MaskDescription:
    return MaskDescription.of(model, base_hash=base, additions=(), prompt="box")


def tune(model: Backbone, selection: Selection) -> None:
    optimizer = torch.optim.SGD(attach(model, selection).values(), lr=0.1)
    model(toy_batch(prompts=prompts_of("box"))).square().mean().backward()
    optimizer.step()
    merge(model)


@pytest.mark.parametrize("kind", ["none", "box", "point"])
def test_both_layouts_give_equal_logits(kind: str) -> None:
    meta, batch = toy_model(), toy_batch(prompts=prompts_of(kind))
    theirs = twin(meta)
    with torch.no_grad():
        torch.testing.assert_close(theirs(batch), meta(batch), rtol=1e-4, atol=1e-4)


def test_names_go_there_and_back_and_mean_the_same() -> None:
    meta = toy_model()
    theirs = twin(meta)
    state = meta.net.state_dict()
    assert layout_of(state) == "Meta" and layout_of(theirs.net.state_dict()) == "transformers"
    assert layout_of({"neck.weight": 0}) is None
    back = renamed(renamed(state, "transformers"), "Meta")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    roles = renamed(meta.roles(), "transformers")
    assert {n: r for n, r in theirs.roles().items() if r != "fixed"} == {n: r for n, r in roles.items() if r != "fixed"}
    assert renamed(meta.parts(), "transformers").keys() <= theirs.parts().keys()


@pytest.mark.parametrize("tuned_in", ["Meta", "transformers"])
def test_a_delta_of_one_layout_applies_to_a_base_of_the_other_and_back(
    tuned_in: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    both: dict[str, Any] = {"Meta": toy_model(), "transformers": twin(toy_model())}
    own, other = both.pop(tuned_in), next(iter(both.values()))
    base = {name: tensor.clone() for name, tensor in own.net.state_dict().items()}
    selection = select(own, None, name="gps", criterion="magnitude")
    tune(own, selection)
    delta, file, out = tmp_path / "d.safetensors", tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    about = describe(own, state_hash(base)).to_metadata()
    save_delta(delta, base=base, merged=own.net.state_dict(), selection=selection, metadata=about)
    save_merged(file, other, describe(other))

    apply_delta(file, delta, out)
    assert f"and {own.name} in that of {tuned_in}: names are mapped" in caplog.text
    merged, said = load_merged(out, MaskDescription)
    assert said.model == other.name and said.prompt == "box"
    batch = toy_batch(prompts=prompts_of("box"))
    with torch.no_grad():
        torch.testing.assert_close(merged(batch), own(batch), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other(batch), own(batch), atol=1e-3)
    undo_delta(out, delta, tmp_path / "undone.safetensors")
    assert diff_files(tmp_path / "undone.safetensors", file) == []
    save_merged(file, twin(toy_model(seed=1)), describe(other))
    with pytest.raises(CheckpointError, match="belongs to another base"):
        apply_delta(file, delta, out)


@pytest.mark.parametrize("tuned_in", ["Meta", "transformers"])
@pytest.mark.parametrize("method", [{"name": "gps", "criterion": "magnitude"}, {"name": "lora", "rank": 2}])
def test_an_audit_takes_base_and_merged_model_in_either_layout(
    tuned_in: str, method: dict[str, Any], tmp_path: Path
) -> None:
    both: dict[str, Any] = {"Meta": toy_model(), "transformers": twin(toy_model())}
    own = both[tuned_in]
    files = {layout: tmp_path / layout for layout in both}
    torch.save(both["Meta"].net.state_dict(), files["Meta"])
    both["transformers"].save_stock(files["transformers"])
    base = {name: tensor.clone() for name, tensor in own.net.state_dict().items()}
    chosen = select(own, None, **method)
    tune(own, chosen)
    about, kept = describe(own, state_hash(base)), {"base_hash": state_hash(base)}
    selection = tmp_path / "selection.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    save_selection(Selection(chosen.entries, chosen.whole, kept, chosen.additions), selection, shapes)
    delta = tmp_path / "d.safetensors"
    merged = own.net.state_dict()
    save_delta(delta, base=base, merged=merged, selection=chosen, metadata=about.to_metadata())
    lines = set()
    for layout, file in files.items():
        apply_delta(file, delta, tmp_path / f"{layout}.safetensors")
    apply_delta(files["Meta"], delta, tmp_path / "weights.pth")
    for name, file in product(("Meta.safetensors", "transformers.safetensors", "weights.pth"), files.values()):
        report = audit_files(file, tmp_path / name, selection)
        assert report.ok and not report.idle, (name, file)
        lines.add(report.lines[1])
    assert len(lines) == 1
    assert diff_files(*files.values()) == []
    assert diff_files(tmp_path / "weights.pth", tmp_path / "transformers.safetensors") == []
    torch.save(toy_model(seed=1).net.state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="belongs to another base"):
        audit_files(tmp_path / "other.pth", tmp_path / "transformers.safetensors", selection)


def test_a_selection_of_one_layout_is_one_of_the_other() -> None:
    meta = toy_model()
    theirs = twin(meta)
    base, their_base = dict(meta.net.state_dict()), dict(theirs.net.state_dict())
    chosen = select(meta, None, name="lora", rank=2)
    chosen = Selection({**chosen.entries}, chosen.whole, {"base_hash": state_hash(base)}, chosen.additions)
    found = selection_for(chosen, their_base, state_hash(their_base))
    assert found is not None and found.additions[0].module == "vision_encoder.layers.0.attn.qkv"
    wanted = select(theirs, None, name="lora", rank=2)
    assert set(found.whole) == set(wanted.whole) and found.additions == wanted.additions
    attach(theirs, found)
    assert selection_for(found, base, state_hash(base)) is not None
    assert selection_for(chosen, dict(toy_model(seed=1).net.state_dict()), "0") is None


@pytest.mark.parametrize("family", ["sam_hf", "sam2"])
def test_a_folder_of_transformers_is_exported_as_a_pth(family: str, tmp_path: Path) -> None:
    stock = toy_hf(family).net.state_dict()
    toy_hf(family).save_stock(tmp_path / "folder")
    export_pth(tmp_path / "folder", tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written.keys() == stock.keys() and all(torch.equal(written[name], stock[name]) for name in stock)


def test_a_merged_sam_is_exported_as_a_folder_of_transformers(tmp_path: Path) -> None:
    meta, batch = toy_model(), toy_batch()
    save_merged(tmp_path / "merged.safetensors", meta, describe(meta))
    export_folder(tmp_path / "merged.safetensors", tmp_path / "hf")
    stock = transformers.SamModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = stock(pixel_values=meta.normalise(batch.images, batch.valid()), multimask_output=False).pred_masks[:, 0]
        torch.testing.assert_close(found, meta(batch), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="holds something already"):
        export_folder(tmp_path / "merged.safetensors", tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"\. is no new folder: give the name of one"):
        export_folder(tmp_path / "merged.safetensors", Path())


def test_models_without_a_twin() -> None:
    large = describe(toy_model(image_size=128))
    with pytest.raises(CheckpointError, match=r"toy at 128 px can't be in transformers' layout, .* at 64 px only"):
        twin_of(large)
    with pytest.raises(CheckpointError, match="parts that SAM 1 does not have"):
        twin_model(large.model_copy(update={"classes": ("a", "b")}), {})
    four = toy_model().colours[0][:1] * 4
    with pytest.raises(CheckpointError, match="parts that SAM 1 does not have"):
        twin_of(describe(toy_model()).model_copy(update={"channels": 4, "pixel_mean": four, "pixel_std": four}))
    odd = build_hf("sam_hf", checkpoint="random", config=config_of(replace(SPEC, depth=3)))
    with pytest.raises(CheckpointError, match="has sizes of no model in Meta's layout"):
        twin_of(describe(odd))
