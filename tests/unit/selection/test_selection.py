"""The selection file: small, exact, checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import toy_model

from samtune.base.tensors import read_metadata
from samtune.errors import CheckpointError
from samtune.selection import Selection, check_selection, load_selection, save_selection
from samtune.selection.selection import pack_indices, unpack_indices

PROVENANCE = {"method": "gps", "per_neuron": "1", "seed": "0", "base_hash": "ab" * 32}


def per_row(rows: int, columns: int, chosen: list[int]) -> Tensor:
    """Returns the flat indices of the same columns in every row."""
    return (torch.arange(rows)[:, None] * columns + torch.tensor(chosen)).flatten()


@pytest.mark.parametrize(
    ("shape", "indices", "kind", "dtype", "packed_shape"),
    [
        ((4, 256), per_row(4, 256, [0, 255]), "columns", torch.uint8, (4, 2)),
        ((4, 257), per_row(4, 257, [3, 256]), "columns", torch.uint16, (4, 2)),
        ((2, 70_000), per_row(2, 70_000, [69_999]), "columns", torch.int32, (2, 1)),
        ((8, 4, 3, 3), per_row(8, 36, [1, 7, 35]), "columns", torch.uint8, (8, 3)),
        ((6,), torch.arange(6), "columns", torch.uint8, (6, 1)),
        ((4, 60), torch.tensor([5, 7, 200]), "flat", torch.uint8, (3,)),
        ((4, 300), torch.tensor([5, 7, 1199]), "flat", torch.uint16, (3,)),
        ((300, 300), torch.tensor([0, 89_999]), "flat", torch.int32, (2,)),
        ((6,), torch.tensor([1, 5]), "flat", torch.uint8, (2,)),
        ((4, 60), torch.tensor([], dtype=torch.int64), "flat", torch.uint8, (0,)),
    ],
)
def test_indices_are_packed_small_and_come_back(
    shape: tuple[int, ...], indices: Tensor, kind: str, dtype: torch.dtype, packed_shape: tuple[int, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    found, packed = pack_indices(indices, shape)
    assert (found, packed.dtype, tuple(packed.shape)) == (kind, dtype, packed_shape)
    assert torch.equal(unpack_indices(kind, packed, shape), indices)
    save_selection(Selection({"a.weight": indices}), tmp_path / "s.safetensors", {"a.weight": shape})
    loaded = load_selection(tmp_path / "s.safetensors").entries["a.weight"]
    assert loaded.dtype == torch.int64 and torch.equal(loaded, indices)


def test_file_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "selection.safetensors"
    entries = {"a/b.weight": torch.tensor([1, 2, 9]), "c.weight": torch.arange(4)}
    written = Selection(entries, ("d.bias", "e.bias"), PROVENANCE)
    save_selection(written, path, {"a/b.weight": (4, 5), "c.weight": (4, 1)})
    read = load_selection(path)
    assert read.whole == written.whole and read.provenance == PROVENANCE
    assert read.entries.keys() == entries.keys()
    assert all(torch.equal(read.entries[name], entries[name]) for name in entries)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half-written file beside it


def test_a_file_keeps_the_order_of_the_choice(tmp_path: Path) -> None:
    """Tensors lie in it by type and name; the norm of a gradient is a sum in the order of what trains."""
    entries = {"b": torch.arange(2), "c": torch.tensor([0, 299]), "a": torch.arange(3)}
    save_selection(Selection(entries), tmp_path / "s.safetensors", {"a": (3,), "b": (2,), "c": (300,)})
    assert list(load_selection(tmp_path / "s.safetensors").entries) == ["b", "c", "a"]


def test_file_is_one_byte_per_entry(tmp_path: Path) -> None:
    path = tmp_path / "selection.safetensors"
    save_selection(Selection({"a": per_row(20_000, 200, [7])}), path, {"a": (20_000, 200)})
    assert load_file(path)["columns/a"].nbytes == 20_000 and path.stat().st_size < 20_500


def test_add_whole_replaces_entries() -> None:
    selection = Selection({"a": torch.arange(2), "b": torch.arange(3)}, ("z",), PROVENANCE).add_whole(["c", "a", "z"])
    assert selection.names() == ["a", "b", "c", "z"]
    assert set(selection.entries) == {"b"} and selection.whole == ("a", "c", "z")
    assert selection.provenance == PROVENANCE


# --- what does not fit


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection({"head.weight": torch.arange(2)}), r"tunes 'head\.weight', which this model does not have"),
        (Selection({}, ("head.bias",)), r"tunes 'head\.bias', which this model does not have: another model's\?"),
        (Selection({}, ("prompt_encoder.point_embeddings.0.weight",)), r"point_embeddings.* is fixed in this model"),
        (Selection({"image_encoder.neck.0.weight": torch.tensor([0, 32 * 32])}), r"outside of \S+ \(1024 entries\)"),
        (Selection({"image_encoder.neck.0.weight": torch.tensor([-1, 3])}), r"points outside of"),
    ],
    ids=["unknown entries", "unknown whole", "fixed", "too large", "negative"],
)
def test_selection_of_another_model_is_refused(selection: Selection, message: str) -> None:
    model = toy_model()
    with pytest.raises(CheckpointError, match=message):
        check_selection(selection, model)


def test_selection_of_this_model_passes() -> None:
    model = toy_model()
    entries = {"image_encoder.neck.0.weight": torch.tensor([0, 1023]), "image_encoder.pos_embed": torch.tensor([])}
    check_selection(Selection(entries, ("mask_decoder.iou_token.weight",)), model)


def test_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "samtune-merged-1"}):
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"other\.safetensors is no selection file \(samtune-selection-2\)"):
            load_selection(path)


def test_file_of_an_older_version(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"columns/a": torch.zeros(2, 1)}, path, metadata={"format": "samtune-selection-1", "whole": "[]"})
    with pytest.raises(CheckpointError, match=r"old\.safetensors is of an older version \(samtune-selection-1.* again"):
        load_selection(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"whole": None}, "KeyError"),
        ({"shapes": None}, "KeyError"),
        ({"additions": None}, "KeyError"),
        ({"whole": "[oops"}, "Invalid JSON"),
        ({"whole": "5"}, "Input should be a valid array"),
        ({"whole": '[["a"]]'}, "0: Input should be a valid string"),
        ({"whole": "[" * 5000}, "Invalid JSON"),
        ({"shapes": "{}"}, "KeyError"),
        ({"shapes": '{"a": 3}'}, "a: Input should be a valid array"),
        ({"shapes": '{"a": []}'}, "IndexError"),
        ({"shapes": '{"a": [7, 100]}'}, "RuntimeError"),
        ({"additions": '[{"kind": "lora"}]'}, "0: module: Field required"),
        ({"additions": "[1]"}, "0: Input should be"),
        ({"additions": '[{"kind": "lora", "module": "a", "rows": 4}]'}, "0: rows: Input should be a valid array"),
        ({"additions": '[{"kind": "lora", "module": "a", "options": {"rank": [1]}}]'}, "0: options: rank: "),
    ],
)
def test_damaged_metadata(change: dict[str, str | None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "selection.safetensors"
    save_selection(Selection({"a": torch.arange(300)}), path, {"a": (3, 100)})
    metadata = {k: v for k, v in (read_metadata(path) | change).items() if v is not None}
    save_file(load_file(path), path, metadata=metadata)
    message = rf"selection\.safetensors has missing or damaged metadata \({reason}.*\)\. Select again"
    with pytest.raises(CheckpointError, match=message):
        load_selection(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.complex64])
def test_indices_of_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "selection.safetensors"
    save_selection(Selection({"a": torch.arange(3)}), path, {"a": (3, 1)})
    save_file({"columns/a": torch.zeros(3, 1, dtype=dtype)}, path, metadata=read_metadata(path))
    with pytest.raises(CheckpointError, match=rf"damaged metadata .*indices of {dtype}.*Select again"):
        load_selection(path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "selection.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_selection(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        load_selection(path)
    save_selection(Selection({"a": torch.arange(300)}), path, {"a": (3, 100)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_selection(path)
