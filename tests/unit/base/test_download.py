"""Downloads: complete, continued, checked, offline."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from samtune.base import download as module
from samtune.base.download import download, file_sha256
from samtune.errors import CheckpointError, DataError, DiskError

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def content(file_server) -> None:
    file_server.content = CONTENT


def test_downloads_once_and_checks_the_hash(file_server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    assert download(file_server.url, path, sha256=SHA256) == path
    assert path.read_bytes() == CONTENT and file_sha256(path) == SHA256
    download(file_server.url, path, sha256=SHA256)
    assert file_server.requests == [None]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]  # no .part, no record beside a known hash


def test_continues_where_it_stopped(file_server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    file_server.stop_after = 40_000
    with pytest.raises(DataError, match=r"can't download .*closed after 40,000 of 102,400 bytes.*continued"):
        download(file_server.url, path, sha256=SHA256)
    assert not path.exists() and (tmp_path / "file.bin.part").stat().st_size == 40_000
    file_server.stop_after = None
    download(file_server.url, path, sha256=SHA256)
    assert file_server.requests == [None, "bytes=40000-"] and path.read_bytes() == CONTENT


def test_server_without_ranges_starts_again(file_server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    file_server.ranges = False
    assert download(file_server.url, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT


def test_complete_part_is_not_fetched_again(file_server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download(file_server.url, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT
    assert len(file_server.requests) == 1


def test_part_longer_than_the_file_starts_again(file_server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert download(file_server.url, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT


def test_wrong_hash_leaves_nothing(file_server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"SHA-256 is {SHA256}, but the published hash is {'0' * 64}"):
        download(file_server.url, tmp_path / "file.bin", sha256="0" * 64, error=CheckpointError)
    assert list(tmp_path.iterdir()) == []


def test_damaged_existing_file_is_named(file_server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="delete the file and download it again"):
        download(file_server.url, path, sha256=SHA256)
    assert path.exists()  # a user's file is never deleted


def test_unknown_hash_is_recorded_then_compared(file_server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file.bin"
    download(file_server.url, path)
    assert f"no published hash of file.bin: recorded {SHA256}" in caplog.text
    assert (tmp_path / "file.bin.sha256").read_text() == f"{SHA256}  file.bin\n"
    path.unlink()
    file_server.content = CONTENT[:-1]
    with pytest.raises(DataError, match=r"the hash of the first download in file\.bin\.sha256"):
        download(file_server.url, path)


def test_offline_and_refused(file_server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with pytest.raises(CheckpointError, match=r"can't download http://127\.0\.0\.1:9/x.*put it at .*file\.bin"):
        download("http://127.0.0.1:9/x", path, error=CheckpointError)
    file_server.status = 404
    with pytest.raises(DataError, match=r"can't download .*Not Found"):
        download(file_server.url, path)
    with pytest.raises(DataError, match="only http and https"):
        download("file:///etc/passwd", path)


def test_unwritable_folder(file_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="can't write"):
        download(file_server.url, tmp_path / "file" / "x.bin")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_store", full)
    with pytest.raises(DiskError, match="No space left"):
        download(file_server.url, tmp_path / "x.bin")
