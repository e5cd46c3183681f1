from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samtune.base.tensors import read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError, DiskError

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.float16)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {"format": "x", "note": 'quotes " and é'})
    assert read_metadata(path) == {"format": "x", "note": 'quotes " and é'}
    assert {n: t.tolist() for n, t in load_file(path).items()} == {n: t.tolist() for n, t in TENSORS.items()}
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_views_and_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"t": torch.arange(6.0).view(2, 3).T}, {})
    assert load_file(path)["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read_metadata(path) == {}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = {f"key{n}": str(n) * n for n in range(9)}
    contents = set()
    for order in (1, -1):
        for _ in range(5):  # safetensors alone writes the metadata in another order each time
            save_tensors(tmp_path / "t", dict(list(TENSORS.items())[::order]), dict(list(metadata.items())[::order]))
            contents.add((tmp_path / "t").read_bytes())
    assert len(contents) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {})
    before = path.read_bytes()

    def full(_: object, partial: Path, **__: object) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samtune.base.tensors.save_file", full)
    with pytest.raises(DiskError, match=r"can't write to .*t.safetensors: No space left on device.*free some space"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="can't write"):
        save_tensors(tmp_path / "file" / "t.safetensors", TENSORS, {})


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(CheckpointError, match=r"text is damaged or no safetensors file"):
        read_metadata(tmp_path / "text")
    for missing in (tmp_path / "gone", tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            read_metadata(missing)


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    expected = hashlib.sha256(b"a|float32|(2,)|" + b"\x00\x00\x80\x3f\x00\x00\x00\x40").hexdigest()
    assert state_hash({"a": torch.tensor([1.0, 2.0])}) == expected
    assert state_hash(TENSORS) == state_hash(dict(reversed(TENSORS.items())))
    base = state_hash({"a": torch.zeros(4)})
    others = ({"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4).half()}, {"a": -torch.zeros(4)})
    assert base not in {state_hash(other) for other in others}
