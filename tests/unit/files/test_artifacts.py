"""Delta, undo, diff, inspect, audit and export on a small model with random weights."""

from __future__ import annotations

import ast
import logging
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from descriptions import class_description, load_masks, mask_description
from safetensors.torch import load_file
from torch import Tensor
from toyvit import FAMILIES

from samtune.base.tensors import read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError, DiskError
from samtune.files.audit import audit, audit_files, diff_files, inspect_file
from samtune.files.delta import apply_delta, base_of, save_delta, undo_delta
from samtune.files.description import Description
from samtune.files.export.pth import export_pth
from samtune.files.merged import save_merged
from samtune.models.table import build_model
from samtune.models.timm.model import Classifier, build_classifier
from samtune.selection import Selection, save_selection
from samtune.tasks.table import describe_file
from samtune.types import LabelledBatch

COLUMNS = "image_encoder.blocks.0.mlp.lin1.weight"  # one entry per row
FLAT = "image_encoder.neck.0.weight"  # a few entries anywhere
WHOLE = "mask_decoder.mask_tokens.weight"
FROZEN = "image_encoder.blocks.1.mlp.lin1.weight"


@dataclass(frozen=True)
class Files:
    """What a run leaves, and its base."""

    base: Path
    merged: Path
    delta: Path
    selection: Path
    chosen: Selection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("sam_tiny", checkpoint="random", image_size=64)
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    rows, columns = shapes[COLUMNS]
    one_per_row = torch.arange(rows) * columns + torch.randint(columns, (rows,))
    chosen = Selection(
        {COLUMNS: one_per_row, FLAT: torch.tensor([5, 6, 7, 28000])}, (WHOLE,), {"method": "gps", "split": "train"}
    )
    with torch.no_grad():
        for name, indices in chosen.entries.items():
            model.net.get_parameter(name).view(-1)[indices] += torch.randn(len(indices))
        model.net.get_parameter(WHOLE).mul_(1.5)
    info = mask_description(model="sam_tiny", image_size=64, prompt="none", base_hash=state_hash(base))
    made = Files(*(folder / f"{name}.safetensors" for name in ("base", "merged", "delta", "selection")), chosen)
    save_tensors(made.base, base, {})
    save_merged(made.merged, model, info)
    save_delta(made.delta, base=base, merged=model.net.state_dict(), selection=chosen, metadata=info.to_metadata())
    save_selection(chosen, made.selection, shapes)
    return made


def equal_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.int32), b[n].view(torch.int32)) for n in a)


def moved(path: Path, name: str, out: Path) -> Path:
    """Copies a model with one entry changed in its last bit."""
    state = load_file(path)
    state[name].view(-1).view(torch.int32)[3] ^= 1
    save_tensors(out, state, read_metadata(path))
    return out


def test_apply_gives_the_merged_model_and_undo_the_base(files: Files, tmp_path: Path) -> None:
    apply_delta(files.base, files.delta, tmp_path / "merged.safetensors")
    assert equal_bits(load_file(tmp_path / "merged.safetensors"), load_file(files.merged))
    assert read_metadata(tmp_path / "merged.safetensors") == read_metadata(files.merged)
    undo_delta(files.merged, files.delta, tmp_path / "base.safetensors")
    assert equal_bits(load_file(tmp_path / "base.safetensors"), load_file(files.base))
    model, info = load_masks(tmp_path / "merged.safetensors")
    assert (model.name, info.image_size, info.base_hash) == ("sam_tiny", 64, state_hash(load_file(files.base)))


def test_a_delta_is_small(files: Files) -> None:
    tuned = sum(len(indices) for indices in files.chosen.entries.values()) + load_file(files.base)[WHOLE].numel()
    assert sum(t.numel() for n, t in load_file(files.delta).items() if n.startswith("bits/")) == tuned
    assert files.delta.stat().st_size < 20_000 < files.merged.stat().st_size / 100


def test_signs_and_denormals_survive(tmp_path: Path) -> None:
    base = {"w": torch.tensor([0.0, -0.0, 1e-42, 3.0])}
    merged = {"w": torch.tensor([-0.0, 0.0, -1e-42, 3e38])}
    delta = tmp_path / "d.safetensors"
    metadata = mask_description(base_hash=state_hash(base)).to_metadata()
    save_delta(delta, base=base, merged=merged, selection=Selection({}, ("w",)), metadata=metadata)
    save_tensors(tmp_path / "b.safetensors", base, {})
    apply_delta(tmp_path / "b.safetensors", delta, tmp_path / "m.safetensors")
    assert equal_bits(load_file(tmp_path / "m.safetensors"), merged)


def test_apply_by_the_name_of_a_model(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = build_model("sam_tiny", checkpoint=files.base)
    for module in ("delta", "description"):
        monkeypatch.setattr(f"samtune.files.{module}.build_model", lambda name, **_: {"sam_tiny": stock}[name])
    apply_delta("sam_tiny", files.delta, tmp_path / "m.safetensors")
    assert equal_bits(load_file(tmp_path / "m.safetensors"), load_file(files.merged))
    assert diff_files("sam_tiny", files.base) == []


def test_files_of_another_run_are_refused(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    other = moved(files.base, FROZEN, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"delta.safetensors belongs to another base than .*other.safetensors"):
        apply_delta(other, files.delta, out)
    with pytest.raises(CheckpointError, match=r"belongs to another base"):
        apply_delta(files.merged, files.delta, out)  # applied twice
    with pytest.raises(CheckpointError, match=r"belongs to another merged model than .*other.safetensors"):
        undo_delta(other, files.delta, out)
    assert not out.exists()


def flip(content: bytearray) -> None:
    content[-4] ^= 16  # in the bits of the last tensor


def flip_index(content: bytearray) -> None:
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content)):
        content[place] = 255


def truncate(content: bytearray) -> None:
    del content[len(content) // 2 :]


def empty(content: bytearray) -> None:
    content.clear()


@pytest.mark.parametrize("damage", [flip, flip_index, truncate, empty])
def test_a_damaged_delta_is_refused(files: Files, tmp_path: Path, damage: Callable[[bytearray], None]) -> None:
    content = bytearray(files.delta.read_bytes())
    damage(content)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(content)
    for command, given in ((apply_delta, files.base), (undo_delta, files.merged)):
        with pytest.raises(CheckpointError, match=r"broken.safetensors is damaged"):
            command(given, broken, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_any_flipped_byte_is_noticed(files: Files, tmp_path: Path) -> None:
    content = files.delta.read_bytes()
    broken = tmp_path / "broken.safetensors"
    start = 8 + int.from_bytes(content[:8], "little")
    for place in random.sample(range(start, len(content)), 12):
        broken.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="is damaged"):
            apply_delta(files.base, broken, tmp_path / "out.safetensors")


def test_foreign_files_are_refused(files: Files, tmp_path: Path) -> None:
    out, text = tmp_path / "out.safetensors", tmp_path / "text.safetensors"
    text.write_text("no tensors " * 20)
    with pytest.raises(CheckpointError, match=r"merged.safetensors is no delta file .*samtune-delta-1"):
        apply_delta(files.base, files.merged, out)
    with pytest.raises(CheckpointError, match=r"text.safetensors is damaged"):
        apply_delta(files.base, text, out)
    with pytest.raises(CheckpointError, match=r"missing.safetensors does not exist"):
        undo_delta(files.merged, tmp_path / "missing.safetensors", out)
    with pytest.raises(CheckpointError, match=r"sam_tini is neither a checkpoint file nor sam_tiny, which"):
        apply_delta("sam_tini", files.delta, out)
    with pytest.raises(CheckpointError, match=r"delta.safetensors is no selection file"):
        audit_files(files.base, files.merged, files.delta)
    with pytest.raises(CheckpointError, match=r"text.safetensors is damaged"):
        inspect_file(text)
    with pytest.raises(CheckpointError, match=r"delta.safetensors holds 5 tensors that are no weights \(bits/"):
        diff_files(files.base, files.delta)
    with pytest.raises(CheckpointError, match=r"base.safetensors and .*other.safetensors are not of one model"):
        save_tensors(tmp_path / "other.safetensors", {"w": torch.zeros(2)}, {})
        diff_files(files.base, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merged": None}, "lacks merged in its metadata. Give the delta.safetensors of a run folder"),
        ({"base_hash": None, "merged_hash": None}, "lacks base_hash, merged_hash in its metadata"),
        ({"merged": "[[]]"}, r"damaged metadata \(merged: Input should be"),
        ({"merged": '{"model": {"name": "sam_tiny"}}'}, r"damaged metadata \(merged: Input should be a valid string"),
        ({"merged": "["}, r"damaged metadata \(merged: Invalid JSON"),
        ({"merged": "{}"}, "is no merged model"),
    ],
)
def test_metadata_of_a_delta(change: dict[str, str | None], message: str, files: Files, tmp_path: Path) -> None:
    delta, out = tmp_path / "d.safetensors", tmp_path / "out.safetensors"
    metadata = {key: value for key, value in (read_metadata(files.delta) | change).items() if value is not None}
    save_tensors(delta, load_file(files.delta), metadata)
    with pytest.raises(CheckpointError, match=rf"d\.safetensors .*{message}"):
        apply_delta(files.base, delta, out)
    if len(metadata) < 4:
        with pytest.raises(CheckpointError, match=message):
            undo_delta(files.merged, delta, out)


def test_a_file_that_can_not_be_written_is_a_disk_error(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"can't write to .*out.safetensors: .*Choose a writable folder"):
        apply_delta(files.base, files.delta, tmp_path / "file" / "out.safetensors")
    with pytest.raises(DiskError, match=r"can't write to .*out.pth"):
        export_pth(files.merged, tmp_path / "file" / "out.pth")
    apply_delta(files.base, files.delta, tmp_path / "new" / "out.safetensors")  # a missing folder is made


def test_diff_counts_the_changed_entries(files: Files) -> None:
    rows = {row.name: row for row in diff_files(files.base, files.merged)}
    assert set(rows) == {COLUMNS, FLAT, WHOLE}
    before, after = load_file(files.base), load_file(files.merged)
    assert rows[FLAT].changed == 4
    assert rows[COLUMNS].changed == len(files.chosen.entries[COLUMNS])
    assert rows[WHOLE].changed == rows[WHOLE].total == before[WHOLE].numel()
    assert rows[FLAT].max_abs == pytest.approx(float((before[FLAT] - after[FLAT]).abs().max()))
    assert diff_files(files.base, files.base) == []


def test_diff_refuses_another_shape(files: Files, tmp_path: Path) -> None:
    state = load_file(files.base)
    state[FROZEN] = state[FROZEN][:5].clone()
    save_tensors(tmp_path / "s.safetensors", state, {})
    with pytest.raises(CheckpointError, match=rf"they differ in '{FROZEN}' \(1 tensors\)"):
        diff_files(files.base, tmp_path / "s.safetensors")


def test_the_audit_passes_a_true_run(files: Files) -> None:
    report = audit_files(files.base, files.merged, files.selection)
    total = sum(tensor.numel() for tensor in load_file(files.base).values())
    allowed = load_file(files.base)[WHOLE].numel() + sum(len(i) for i in files.chosen.entries.values())
    assert report.ok
    assert report.lines == (
        f"{total - allowed:,} unselected entries bit-equal to the base",
        f"{allowed:,} of {allowed:,} selected entries changed",
    )


@pytest.mark.parametrize("name", [FROZEN, FLAT])  # a frozen tensor; an entry beside the selected ones
def test_the_audit_catches_a_moved_weight(files: Files, tmp_path: Path, name: str) -> None:
    stray = moved(files.merged, name, tmp_path / "stray.safetensors")
    report = audit_files(files.base, stray, files.selection)
    assert not report.ok
    assert report.lines[0] == "1 tensors moved"
    assert report.lines[2:] == (f"{name}: 1 entries changed outside of the selection",)


def test_the_audit_refuses_other_tensors(files: Files) -> None:
    base = load_file(files.base)
    report = audit(base, {n: t for n, t in base.items() if n != FROZEN}, files.chosen)
    assert not report.ok
    assert FROZEN in report.lines[0]


def test_the_audit_refuses_the_selection_of_another_base(files: Files, tmp_path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(files.base).items()}
    for bound_to, fits in ((state_hash(load_file(files.base)), True), ("0" * 64, False)):
        chosen = replace(files.chosen, provenance={"base_hash": bound_to})
        save_selection(chosen, tmp_path / "s.safetensors", shapes)
        if fits:
            assert audit_files(files.base, files.merged, tmp_path / "s.safetensors").ok
            continue
        with pytest.raises(CheckpointError, match=r"s\.safetensors belongs to another base than .*expected 0{12}"):
            audit_files(files.base, files.merged, tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Selection({}, ("head.weight",)), "tunes 'head.weight', which the base does not have"),
        (Selection({"w": torch.tensor([1, 4])}), r"points outside of 'w' \(4 entries\)"),
        (Selection({"w": torch.tensor([-1])}), r"points outside of 'w' \(4 entries\)"),
    ],
)
def test_the_audit_refuses_a_selection_that_does_not_fit(chosen: Selection, message: str) -> None:
    state = {"w": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=message):
        audit(state, state, chosen)


def test_inspect_tells_what_a_file_is(files: Files, tmp_path: Path) -> None:
    facts = inspect_file(files.merged)
    assert (facts["format"], facts["model"], facts["image_size"]) == ("samtune-merged-2", "sam_tiny", "64")
    assert facts["tensors"] == len(load_file(files.merged))
    assert facts["types"] == "float32"
    assert facts["bytes"] == files.merged.stat().st_size
    assert len(str(facts["sha256"])) == 64
    chosen = inspect_file(files.selection)
    assert (chosen["format"], chosen["method"], chosen["split"]) == ("samtune-selection-2", "gps", "train")
    assert chosen["types"] == "uint16, uint8"
    export_pth(files.merged, tmp_path / "m.pth")
    assert inspect_file(tmp_path / "m.pth")["numbers"] == facts["numbers"]


def test_export_writes_a_plain_state_dict(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "m.pth"
    out.write_text("old")
    export_pth(files.merged, out)
    assert equal_bits(torch.load(out, weights_only=True), load_file(files.merged))
    assert list(tmp_path.iterdir()) == [out]


def test_export_says_what_stock_code_makes_of_it(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="samtune"):
        export_pth(files.merged, tmp_path / "m.pth")
    loaded, tuned_at, no_model = caplog.records
    assert loaded.message.startswith("loaded ")
    assert tuned_at.message == "segment-anything runs at 1024 px; this model was tuned at 64 px"
    assert "registry has no sam_tiny" in no_model.message
    assert (tmp_path / "m.pth").is_file()
    with pytest.raises(CheckpointError, match=r"base.safetensors is no merged model"):
        export_pth(files.base, tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


# --- classifiers


def tuned_classifier(folder: Path, family: str, **changes: Any) -> Classifier:
    """Writes merged.safetensors and delta.safetensors of a model from random weights; returns it."""
    name, options = FAMILIES[family]
    model = build_classifier(name, classes=3, checkpoint="random", seed=5, **options | changes)
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    changed = next(name for name in base if name.endswith("norm.weight"))
    with torch.no_grad():
        model.net.get_parameter(changed).mul_(1.5)
    info = class_description(model, classes=("cat", "dog", "eel"), resize="crop", base_hash=state_hash(base))
    chosen, delta = Selection({}, (changed,)), folder / "delta.safetensors"
    save_merged(folder / "merged.safetensors", model, info)
    save_delta(delta, base=base, merged=model.net.state_dict(), selection=chosen, metadata=info.to_metadata())
    save_selection(chosen, folder / "selection.safetensors", {n: tuple(t.shape) for n, t in base.items()})
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_printed_call_of_timm_loads_the_export(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tuned_classifier(tmp_path, family, **{} if family == "convnext" else {"image_size": 64})
    with caplog.at_level(logging.INFO, logger="samtune"):
        export_pth(tmp_path / "merged.safetensors", tmp_path / "m.pth")
    _, call, outputs = (record.message for record in caplog.records)  # the first says what was loaded
    pictures = describe_file(tmp_path / "merged.safetensors").input_text()
    assert call.endswith(" loads it")
    stock = eval(call.removesuffix(" loads it"), {"timm": timm}).eval()  # as a reader of the message does
    side = model.image_size
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    found = re.search(r"mean (\(.+?\)), std (\(.+?\))$", pictures)
    assert found is not None
    mean, std = (torch.tensor(ast.literal_eval(text)).view(3, 1, 1) for text in found.groups())
    batch = LabelledBatch(images, torch.zeros(2, dtype=torch.int64), ("a", "b"))
    torch.testing.assert_close(stock((images / 255 - mean) / std), model(batch), atol=1e-4, rtol=1e-4)
    steps = f"{round(side * 256 / 224)} px on the shorter side and cut to the {side} x {side} in the middle"
    assert f"RGB images scaled to {steps} (bicubic, antialiased)" in pictures
    assert outputs == "its outputs are, in order: cat, dog, eel"


def test_the_call_of_a_model_of_ours_names_its_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_classifier("vit_mini", classes=2, checkpoint="random", image_size=96)
    info = class_description(model, classes=("a", "b"), resize="squash", base_hash="0")
    save_merged(tmp_path / "merged.safetensors", model, info)
    with caplog.at_level(logging.INFO, logger="samtune"):
        export_pth(tmp_path / "merged.safetensors", tmp_path / "m.pth")
    stock = eval(caplog.records[1].message.removesuffix(" loads it"), {"timm": timm})
    assert equal_bits(dict(stock.state_dict()), dict(model.net.state_dict()))
    assert "RGB images scaled to 96 x 96 px (bicubic, antialiased)" in info.input_text()


def test_the_base_of_a_classifier_can_be_random(tmp_path: Path) -> None:
    model = tuned_classifier(tmp_path, "vit")
    apply_delta("random", tmp_path / "delta.safetensors", tmp_path / "again.safetensors")
    assert equal_bits(load_file(tmp_path / "again.safetensors"), dict(model.net.state_dict()))
    assert audit_files("random", tmp_path / "merged.safetensors", tmp_path / "selection.safetensors").ok
    undo_delta(tmp_path / "merged.safetensors", tmp_path / "delta.safetensors", tmp_path / "base.safetensors")
    apply_delta(tmp_path / "base.safetensors", tmp_path / "delta.safetensors", tmp_path / "third.safetensors")
    assert equal_bits(load_file(tmp_path / "third.safetensors"), dict(model.net.state_dict()))


def test_random_is_no_base_where_the_head_came_with_the_weights(tmp_path: Path) -> None:
    tuned_classifier(tmp_path, "vit")
    described = Description.read(tmp_path / "merged.safetensors").model_copy(update={"head_seed": None})
    with pytest.raises(CheckpointError, match="random is neither a checkpoint file nor vit_tiny_patch16_224, which"):
        base_of("random", described, tmp_path / "merged.safetensors")


def test_random_is_no_base_of_another_seed(files: Files, tmp_path: Path) -> None:
    tuned_classifier(tmp_path, "vit")
    described = Description.read(tmp_path / "merged.safetensors")
    other = base_of("random", described.model_copy(update={"head_seed": 6}), tmp_path / "merged.safetensors")
    assert state_hash(other) != described.base_hash
    with pytest.raises(CheckpointError, match=r"random is neither a checkpoint file nor sam_tiny, which"):
        apply_delta("random", files.delta, tmp_path / "out.safetensors")


def test_segment_anything_loads_the_export(tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    model = build_model("sam_vit_b", checkpoint="random")
    info = mask_description(model="sam_vit_b", image_size=1024, prompt="none", base_hash="0")
    save_merged(tmp_path / "merged.safetensors", model, info)
    export_pth(tmp_path / "merged.safetensors", tmp_path / "vit_b.pth")
    stock = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "vit_b.pth"))  # loads strictly
    assert equal_bits(dict(stock.state_dict()), dict(model.net.state_dict()))
    shutil.rmtree(tmp_path)  # 750 MB
