"""SAM 2 and 3 in Meta's own files and in transformers: one delta, selection and merged model serves both."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_files import TRUNK, meta_state
from toy import prompts_of, toy_batch
from toy_hf import config_of, toy_hf

from samtune.base.tensors import load_tensors, read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.audit import audit_files, diff_files, inspect_file
from samtune.files.delta import apply_delta, save_delta, undo_delta
from samtune.files.export.folder import export_folder
from samtune.files.merged import load_merged, save_merged
from samtune.models.backbone import Backbone
from samtune.models.hf.build import build_hf
from samtune.models.hf.meta import meta_map_of
from samtune.models.hf.meta_sizes import HIERAS, config_of_hiera, config_of_meta
from samtune.models.table import build_model, build_shapes
from samtune.selection import Selection, save_selection, select
from samtune.tasks.masks.evaluate import MaskDescription
from samtune.tuning import attach, merge

families = pytest.mark.parametrize("family", ["sam2", "sam3"])
State = dict[str, torch.Tensor]


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def describe(model: Backbone, base: State) -> MaskDescription:
    return MaskDescription.of(model, base_hash=state_hash(base), additions=(), prompt="box")


class Tuned:
    """A run of a toy model of transformers, and Meta's file of its base."""

    def __init__(self, family: str, folder: Path, method: dict[str, Any]) -> None:
        self.model = toy_hf(family)
        self.base = {name: tensor.clone() for name, tensor in self.model.net.state_dict().items()}
        self.selection = select(self.model, None, **method)
        optimizer = torch.optim.SGD(attach(self.model, self.selection).values(), lr=0.1)
        self.model(toy_batch(prompts=prompts_of("box"))).square().mean().backward()
        optimizer.step()
        merge(self.model)
        self.delta, self.meta = folder / "delta.safetensors", folder / "meta.pt"
        self.chosen, self.merged = folder / "selection.safetensors", folder / "merged.safetensors"
        about = describe(self.model, self.base)
        tuned = self.model.net.state_dict()
        save_delta(self.delta, base=self.base, merged=tuned, selection=self.selection, metadata=about.to_metadata())
        save_merged(self.merged, self.model, about)
        provenance = {"base_hash": state_hash(self.base)}
        kept = Selection(self.selection.entries, self.selection.whole, provenance, self.selection.additions)
        save_selection(kept, self.chosen, {name: tuple(tensor.shape) for name, tensor in self.base.items()})
        torch.save({"model": meta_state(family)}, self.meta)


@pytest.fixture(scope="module", params=["sam2", "sam3"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Tuned where gps says, with biases: rows of fused and of split weights."""
    method = {"name": "gps", "criterion": "magnitude"}
    return Tuned(request.param, tmp_path_factory.mktemp(request.param), method)


@families
def test_tensors_go_there_and_back_with_an_account(family: str) -> None:
    meta, net = meta_state(family), toy_hf(family).net
    found = meta_map_of(meta, "sam.pt")
    theirs = found.to_transformers(meta)
    assert equal(theirs, dict(net.state_dict()))
    assert equal(found.to_meta(theirs, meta), meta)
    other = dict(toy_hf(family, seed=1).net.state_dict())
    back = found.to_meta(other, meta)
    assert equal(found.to_transformers(back), other)
    assert all(back[name] is meta[name] for name in found.left_out)
    assert len(found.left_out) == (9 if family == "sam2" else 13)
    kinds = "videos" if family == "sam2" else "videos, texts and detections"
    count = len(meta) - len(found.left_out)
    said = f"Meta's {'SAM 2' if family == 'sam2' else 'SAM 3'}: {count} of its tensors are for images, "
    assert said + f"{len(found.left_out)} are for {kinds}" in found.account("sam.pt")


def test_rows_of_fused_and_split_weights_and_of_points() -> None:
    meta = meta_state("sam3")
    theirs, fused = meta_map_of(meta, "sam.pt").to_transformers(meta), meta[f"{TRUNK}blocks.1.attn.qkv.weight"]
    stem = "vision_encoder.backbone."
    for place, part in enumerate("qkv"):
        assert torch.equal(theirs[f"{stem}layers.1.attention.{part}_proj.weight"], fused[32 * place : 32 * place + 32])
    assert torch.equal(theirs[f"{stem}embeddings.position_embeddings"], meta[f"{TRUNK}pos_embed"][:, 1:])
    points = [meta[f"tracker.sam_prompt_encoder.point_embeddings.{index}.weight"] for index in range(4)]
    assert torch.equal(theirs["prompt_encoder.point_embed.weight"], torch.cat(points))


def test_entries_are_the_same_numbers_in_both() -> None:
    meta = meta_state("sam3")
    found = meta_map_of(meta, "sam.pt")
    k_proj, points = "vision_encoder.backbone.layers.0.attention.k_proj.weight", "prompt_encoder.point_embed.weight"
    table = "vision_encoder.backbone.embeddings.position_embeddings"
    entries = {k_proj: torch.tensor([3, 70]), points: torch.tensor([5, 33, 40]), table: torch.tensor([0])}
    there = found.entries_in_meta(entries)
    theirs = found.to_transformers(meta)
    assert there[f"{TRUNK}blocks.0.attn.qkv.weight"].tolist() == [32 * 32 + 3, 32 * 32 + 70]
    assert there["tracker.sam_prompt_encoder.point_embeddings.1.weight"].tolist() == [1, 8]
    assert there[f"{TRUNK}pos_embed"].tolist() == [32]
    values = sorted(float(v) for name, where in entries.items() for v in theirs[name].flatten()[where])
    assert sorted(float(v) for name, where in there.items() for v in meta[name].flatten()[where]) == values


def test_metas_file_is_a_checkpoint_like_the_folder(tuned: Tuned, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    family = tuned.model.name
    loaded = build_hf(family, checkpoint=tuned.meta, config=config_of(family))
    assert f"{tuned.meta} is in the layout of Meta's" in caplog.text
    assert state_hash(loaded.net.state_dict()) == state_hash(tuned.base)  # so scores and selections are of both
    shapes = build_shapes(family, checkpoint=tuned.meta, image_size=None, config=config_of(family))
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert "samtune apply META.pt" in loaded.stock_notes(Path("sam.pth"))[1]
    batch = toy_batch(prompts=prompts_of("point"))
    with torch.no_grad():
        assert torch.equal(loaded(batch), toy_hf(family)(batch))


def test_a_delta_applies_to_metas_file_and_back(tuned: Tuned, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    family, original = tuned.model.name, meta_state(tuned.model.name)
    out, undone = tmp_path / "tuned.pt", tmp_path / "undone.pt"
    apply_delta(tuned.meta, tuned.delta, out)
    assert f"{tuned.meta} is in the layout of Meta's" in caplog.text and "names are mapped" in caplog.text
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"model"}  # as Meta's own code reads it
    wanted = meta_map_of(original, "").to_meta(tuned.model.net.state_dict(), original)
    assert equal(content["model"], wanted) and not equal(content["model"], original)
    rows = {row.name for row in diff_files(tuned.meta, out)}
    assert rows and not rows & set(meta_map_of(original, "").left_out)
    undo_delta(out, tuned.delta, undone)
    assert equal(torch.load(undone, weights_only=True)["model"], original)
    assert diff_files(tuned.meta, undone) == []
    torch.save({"model": meta_state(family, seed=1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="belongs to another base"):
        apply_delta(tmp_path / "other.pt", tuned.delta, out)


def test_with_classes_the_base_may_be_metas_and_the_merged_model_has_transformers_names(tmp_path: Path) -> None:
    torch.save({"model": meta_state("sam2")}, meta := tmp_path / "meta.pt")
    how: Any = {"config": config_of("sam2"), "classes": 3}
    model = build_hf("sam2", checkpoint=meta, **how)
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    selection = select(model, None, name="gps", criterion="magnitude")
    with torch.no_grad():
        for values in attach(model, selection).values():
            values.add_(1)
    tuned = merge(model).net.state_dict()
    about = MaskDescription.of(model, base_hash=state_hash(base), additions=(), prompt="box", classes=("a", "b", "c"))
    delta, out = tmp_path / "delta.safetensors", tmp_path / "merged.safetensors"
    save_delta(delta, base=base, merged=tuned, selection=selection, metadata=about.to_metadata())
    apply_delta(meta, delta, out)
    assert equal(load_tensors(out), dict(tuned)) and not equal(dict(tuned), base)
    undo_delta(out, delta, tmp_path / "undone.safetensors")
    assert equal(load_tensors(tmp_path / "undone.safetensors"), base)


def test_a_merged_file_in_metas_layout_predicts_and_becomes_a_folder(tuned: Tuned, tmp_path: Path) -> None:
    out, batch = tmp_path / "merged.safetensors", toy_batch(prompts=prompts_of("box"))
    apply_delta(tuned.meta, tuned.delta, out)
    merged, said = load_merged(out, MaskDescription)
    assert said.model == tuned.model.name and said.base_hash == state_hash(meta_state(said.model))
    export_folder(out, tmp_path / "folder")
    again = build_model(said.model, checkpoint=tmp_path / "folder")
    with torch.no_grad():
        assert torch.equal(merged(batch), tuned.model(batch)) and torch.equal(again(batch), merged(batch))
    assert "of its tensors are for images" in str(inspect_file(out)["layout"])


def test_the_audit_reads_both_layouts(tuned: Tuned, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    apply_delta(tuned.meta, tuned.delta, out)
    assert audit_files(tuned.meta, tuned.merged, tuned.chosen).ok  # both by the names of transformers
    report = audit_files(tuned.meta, out, tuned.chosen)
    assert report.ok and not report.idle
    apply_delta(tuned.meta, tuned.delta, tmp_path / "unpublished.pt")  # of a size that only its shapes tell
    toy_hf(tuned.model.name).save_stock(tmp_path / "base")
    for base in (tuned.meta, tmp_path / "base"):
        report = audit_files(base, tmp_path / "unpublished.pt", tuned.chosen)
        assert report.ok and not report.idle
    state = load_tensors(out)
    video = next(name for name in state if name.endswith("no_obj_ptr"))
    state[video] = state[video] + 1
    fused = next(name for name in state if name.endswith("blocks.1.attn.qkv.weight"))
    free = next(i for i in range(99) if i not in {int(e) for e in _entries(tuned, state, fused)})
    state[fused].view(-1)[free] += 1
    save_tensors(out, state, read_metadata(out))
    report = audit_files(tuned.meta, out, tuned.chosen)
    assert not report.ok and {line.partition(":")[0] for line in report.lines[2:]} == {video, fused}


def test_the_audit_of_a_run_in_transformers_layout_and_of_metas_tuned_file(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair of layouts of base and merged model; the selection has the names of transformers."""
    family = tuned.model.name
    config = config_of(family)
    monkeypatch.setattr("samtune.models.hf.build.config_of_meta", lambda name, path: config if path else None)
    toy_hf(family).save_stock(tmp_path / "base")
    bases = {"Meta": tuned.meta, "transformers": tmp_path / "base"}
    apply_delta(tuned.meta, tuned.delta, tmp_path / "tuned.pt")
    apply_delta(tuned.meta, tuned.delta, tmp_path / "tuned.safetensors")
    frozen = {}
    for (layout, base), name in product(bases.items(), ("tuned.pt", "tuned.safetensors", "merged")):
        merged = tuned.merged if name == "merged" else tmp_path / name
        report = audit_files(base, merged, tuned.chosen)
        assert report.ok and not report.idle, (layout, name)
        frozen[layout, name] = report.lines[0]
    counts = {line for (layout, name), line in frozen.items() if layout == "Meta" and name != "merged"}
    tuned.model.save_stock(tmp_path / "folder")
    assert all(audit_files(base, tmp_path / "folder", tuned.chosen).ok for base in bases.values())
    assert len(counts) == 1 and counts.isdisjoint(frozen["transformers", name] for name in ("tuned.pt", "merged"))
    assert load_merged(tmp_path / "tuned.pt", MaskDescription)[1].prompt == "box"
    assert diff_files(tmp_path / "base", tuned.meta) == [] == diff_files(tmp_path / "tuned.pt", tuned.merged)
    moved = [set(diff_files(base, tuned.merged)) for base in bases.values()]
    assert moved[0] == moved[1] != set()
    torch.save({"model": meta_state(family, seed=1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="belongs to another base"):
        audit_files(tmp_path / "other.pt", tuned.merged, tuned.chosen)
    other = "sam3" if family == "sam2" else "sam2"
    toy_hf(other).save_stock(tmp_path / "other")
    with pytest.raises(CheckpointError, match=rf"was tuned from {family}, which .*other does not give: .* of a Sam"):
        audit_files(tmp_path / "other", tuned.merged, tuned.chosen)
    assert not audit_files(tuned.meta, tmp_path / "other.pt", tuned.chosen).ok


def _entries(tuned: Tuned, state: State, name: str) -> torch.Tensor:
    return meta_map_of(state, "").entries_in_meta(tuned.selection.entries)[name]


def test_what_lora_changed_is_audited_in_metas_file(tmp_path: Path) -> None:
    run, out = Tuned("sam3", tmp_path, {"name": "lora", "rank": 2}), tmp_path / "out.safetensors"
    apply_delta(run.meta, run.delta, out)
    assert audit_files(run.meta, out, run.chosen).ok


def test_files_of_meta_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sam.pt"
    torch.save({"model": meta_state("sam3")}, file)
    with pytest.raises(CheckpointError, match=r"is Meta's file of a SAM 3: set model\.name to sam3\."):
        build_model("sam2", checkpoint=file)
    with pytest.raises(CheckpointError, match=r"is Meta's file of a SAM 3: set model\.name to sam3\."):
        build_hf("sam2", checkpoint=file, config=config_of("sam2"))
    with pytest.raises(CheckpointError, match=r"width 32 with 2 blocks, which was not published: 1024 and 32"):
        build_model("sam3", checkpoint=file)
    torch.save({"model": meta_state("sam2")}, file)
    with pytest.raises(CheckpointError, match=r"width 16 with 5 blocks.* 96 and 12 \(tiny\).* folder of transformers"):
        build_model("sam2", checkpoint=file)
    torch.save({"model": meta_state("sam2") | {"image_encoder.head.weight": torch.ones(2)}}, file)
    with pytest.raises(CheckpointError, match=r"holds 1 tensors that no such file has \(image_encoder\.head\.weight\)"):
        build_hf("sam2", checkpoint=file, config=config_of("sam2"))
    state = meta_state("sam2")
    del state["sam_mask_decoder.iou_token.weight"]
    torch.save({"model": state}, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(mask_decoder\.iou_token\.weight\)"):
        build_hf("sam2", checkpoint=file, config=config_of("sam2"))
    with pytest.raises(
        CheckpointError, match=r"not fit the model .* Meta's file of a SAM 2: set model\.name to sam2\."
    ):
        build_model("sam_tiny", checkpoint=file)
    with pytest.raises(CheckpointError, match=r"is a folder of transformers, and .* is a file\. Set model\.name"):
        toy_hf("sam2").save_stock(tmp_path / "folder")
        build_model("sam_tiny", checkpoint=tmp_path / "folder")


@pytest.mark.parametrize("size", HIERAS)
def test_published_sizes_are_known_by_their_shapes(size: str, tmp_path: Path) -> None:
    hiera, trunk = HIERAS[size], "image_encoder.trunk."
    state = {f"{trunk}patch_embed.proj.weight": torch.zeros(hiera.width, 3, 7, 7)}
    state |= {f"{trunk}blocks.{index}.norm1.weight": torch.zeros(1) for index in range(sum(hiera.blocks))}
    torch.save({"model": state}, tmp_path / "sam.pt")
    save_tensors(tmp_path / "sam.safetensors", state, {})
    for name in ("sam.pt", "sam.safetensors"):
        assert config_of_meta("sam2", tmp_path / name) == config_of_hiera(hiera)
    assert config_of_meta("sam_hf", tmp_path / "sam.pt") is None


def test_a_published_sam_3_is_known_by_its_shapes(tmp_path: Path) -> None:
    state = {f"{TRUNK}patch_embed.proj.weight": torch.zeros(1024, 1, 1, 1)}
    state |= {f"{TRUNK}blocks.{index}.norm1.weight": torch.zeros(1) for index in range(32)}
    torch.save({"model": state}, tmp_path / "sam3.pt")
    assert config_of_meta("sam3", tmp_path / "sam3.pt") == {"vision_config": {"model_type": "sam3_vision_model"}}
