from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from samtune.base.tensors import DATA_HASH, HEADER_HASH, load_tensors, read_metadata, save_tensors, state_hash
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
    with pytest.raises(DiskError, match=r"can't write to .*t.safetensors: No space left on device.*[Ff]ree some space"):
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
    with pytest.raises(CheckpointError, match="gone does not exist"):
        read_metadata(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"is a folder, and a file is needed. It holds: no .safetensors"):
        read_metadata(tmp_path)


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    expected = hashlib.sha256(b"a|float32|(2,)|" + b"\x00\x00\x80\x3f\x00\x00\x00\x40").hexdigest()
    assert state_hash({"a": torch.tensor([1.0, 2.0])}) == expected
    assert state_hash(TENSORS) == state_hash(dict(reversed(TENSORS.items())))
    base = state_hash({"a": torch.zeros(4)})
    others = ({"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4).half()}, {"a": -torch.zeros(4)})
    assert base not in {state_hash(other) for other in others}


# --- the hashes in a file


def stored(path: Path) -> dict[str, str]:
    """Everything in the metadata, as the library reads it."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def same_content(path: Path) -> bool:
    """Whether a file holds what was written, and else is refused as damaged."""
    try:
        metadata, tensors = read_metadata(path), load_tensors(path)
    except CheckpointError as err:
        assert str(path) in str(err) and "is damaged" in str(err) and "Get or make the file again." in str(err)
        return False
    assert (metadata, state_hash(tensors)) == ({"note": "é"}, state_hash(TENSORS))
    return True


def test_a_file_holds_the_hashes_of_its_tensors_and_of_its_header(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {"note": "é"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert stored(path)[DATA_HASH] == hashlib.sha256(content[start:]).hexdigest()
    assert len(stored(path)[HEADER_HASH]) == 64 and stored(path).keys() == {"note", DATA_HASH, HEADER_HASH}
    assert same_content(path)
    save_file(load_file(path), path, metadata=stored(path))  # another program that changes nothing
    assert same_content(path)


@pytest.mark.parametrize("bit", [0, 6])
def test_no_flipped_bit_is_loaded(bit: int, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {"note": "é"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    noticed = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
        noticed.append(not same_content(path))
    assert all(noticed[:8]) and all(noticed[start:])
    assert sum(noticed) > len(content) - 20  # spaces at the end of the header mean nothing


def test_truncation_is_noticed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {"note": "é"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not same_content(path)


def test_files_without_hashes_are_taken_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    with caplog.at_level(logging.DEBUG, logger="samtune"):
        assert state_hash(load_tensors(path)) == state_hash(TENSORS)
    assert read_metadata(path) == {"format": "pt"}
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("DEBUG", f"{path} holds no hash of its own: its tensors are taken as they are")
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(30), "by its content it is an archive, as the .pth files of PyTorch are: name it so"),
        (b"<html>404</html>", "it is a page of the web"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: git lfs pull gets the file"),
    ],
)
def test_what_a_file_is_instead(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_metadata(path)
    assert str(caught.value).startswith(f"{path} is damaged or no safetensors file ({reason}")


def test_folders_and_links_are_said_to_be_such(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_tensors(tmp_path / "run" / "merged.safetensors", TENSORS, {})
    with pytest.raises(CheckpointError, match=r"run is a folder, and a file is needed\. It holds: merged\.safetensors"):
        load_tensors(tmp_path / "run")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"link is a link to nowhere, which does not exist"):
        load_tensors(tmp_path / "link")
