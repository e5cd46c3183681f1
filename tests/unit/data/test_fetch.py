"""Fetching a data set from a server on this machine."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from samtune.data.fetch import SOURCES, fetch
from samtune.errors import DataError


def archive(*, extra: dict[str, bytes] | None = None, names: tuple[str, ...] = ("a", "b")) -> bytes:
    stream = BytesIO()
    picture = BytesIO()
    Image.new("L", (12, 10), 255).save(picture, "PNG")
    with zipfile.ZipFile(stream, "w") as packed:
        for name in names:
            for part in ("images", "masks"):
                packed.writestr(f"Kvasir-SEG/{part}/{name}.png", picture.getvalue())
        packed.writestr("Kvasir-SEG/bboxes.json", b"{}")
        packed.writestr("__MACOSX/Kvasir-SEG/images/._a.png", b"x")
        for path, content in (extra or {}).items():
            packed.writestr(path, content)
    return stream.getvalue()


def test_archive_becomes_a_data_folder(file_server, tmp_path: Path) -> None:
    file_server.content = archive()
    folder = fetch("kvasir-seg", tmp_path / "kvasir", url=file_server.url)
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == [
        "images/a.png",
        "images/b.png",
        "kvasir-seg.zip",
        "kvasir-seg.zip.sha256",
        "masks/a.png",
        "masks/b.png",
    ]
    fetch("kvasir-seg", tmp_path / "kvasir", url=file_server.url)
    assert len(file_server.requests) == 1  # the archive is there


@pytest.mark.parametrize(
    "path", ["../evil/images/x.png", "/abs/images/x.png", "a/..\\..\\images/x.png", "C:/images/x.png"]
)
def test_unsafe_paths_are_refused_before_anything_is_written(file_server, tmp_path: Path, path: str) -> None:
    file_server.content = archive(extra={path: b"x"})
    with pytest.raises(DataError, match="unsafe path"):
        fetch("kvasir-seg", tmp_path / "kvasir", url=file_server.url)
    assert not (tmp_path / "kvasir" / "images").exists() and not (tmp_path / "evil").exists()


def test_damaged_or_wrong_archives(file_server, tmp_path: Path) -> None:
    file_server.content = b"not a zip file"
    with pytest.raises(DataError, match="damaged archive"):
        fetch("kvasir-seg", tmp_path / "one", url=file_server.url)
    file_server.content = archive(names=())
    with pytest.raises(DataError, match="holds no picture"):
        fetch("kvasir-seg", tmp_path / "two", url=file_server.url)


def test_unknown_name() -> None:
    with pytest.raises(DataError, match=r"unknown data set 'kvasir'.*Did you mean 'kvasir-seg'"):
        fetch("kvasir", "anywhere")


def test_offline_says_which_file_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put it at .*kvasir-seg\.zip"):
        fetch("kvasir-seg", tmp_path, url="http://127.0.0.1:9/kvasir-seg.zip")


def test_sources_state_a_licence() -> None:
    assert all(source.url.startswith("https://") and source.licence for source in SOURCES.values())
