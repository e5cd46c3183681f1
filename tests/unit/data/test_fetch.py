"""Fetching a data set from a server on this machine."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from class_trees import write_imagenet, write_vtab
from PIL import Image

from samtune.data.fetch import SOURCES, fetch
from samtune.data.packaged import PACKAGED
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, DataError
from samtune.tasks.classes.splits import evaluation_images, resolve_classes


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
        "kvasir-seg.fetched",
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
    with pytest.raises(ConfigError, match=r"unknown data set 'kvasir'.*Did you mean 'kvasir-seg'"):
        fetch("kvasir", "anywhere")


def test_offline_says_which_file_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put it at .*kvasir-seg\.zip"):
        fetch("kvasir-seg", tmp_path, url="http://127.0.0.1:9/kvasir-seg.zip")


def test_sources_state_a_licence() -> None:
    assert all(source.url.startswith("https://") and source.licence for source in SOURCES.values())
    assert all(source.licence for source in PACKAGED.values())


def packed(folder: Path, kind: str, extra: dict[str, bytes] | None = None) -> bytes:
    """Returns a folder, under its own name, as an archive."""
    stream = BytesIO()
    files = {f"{folder.name}/{p.relative_to(folder)}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files |= extra or {}
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as taped:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                taped.addfile(member, BytesIO(content))
            link = tarfile.TarInfo(f"{folder.name}/n01440764/link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            taped.addfile(link)
    return stream.getvalue()


def test_class_folders_of_a_tar(file_server, tmp_path: Path) -> None:
    source = write_imagenet(tmp_path / "made", train=0) / "val"
    source = source.rename(tmp_path / "imagenet-a")
    (source / "README.txt").write_text("text")
    file_server.content = packed(source, "tar")
    folder = fetch("imagenet-a", tmp_path / "data", url=file_server.url)
    assert sorted(path.name for path in folder.iterdir()) == [
        "imagenet-a.fetched", "imagenet-a.tar", "imagenet-a.tar.sha256", "n01440764", "n01440771", "n01440778"
    ]  # fmt: skip
    images = evaluation_images(folder, ("n01440764", "n01440771", "n01440778"), name="imagenet-a")
    assert len(images) == 6 and not (folder / "n01440764" / "link.jpg").is_symlink()
    file_server.content = packed(source, "tar", {"imagenet-a/../../n0/a.jpg": b"x"})
    with pytest.raises(DataError, match="unsafe path"):
        fetch("imagenet-a", tmp_path / "other", url=file_server.url)
    file_server.content = b"text"
    with pytest.raises(DataError, match="damaged archive"):
        fetch("imagenet-r", tmp_path / "third", url=file_server.url)


@pytest.mark.parametrize("outermost", [True, False])
def test_tasks_of_a_zip_with_their_lists(file_server, tmp_path: Path, outermost: bool) -> None:
    source = write_vtab(tmp_path / "vtab-1k", "dtd")
    write_vtab(source, "svhn")
    content = packed(source, "zip")
    if not outermost:
        stream = BytesIO()
        with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
            for name in old.namelist():
                new.writestr(name.partition("/")[2], old.read(name))
        content = stream.getvalue()
    file_server.content = content
    folder = fetch("vtab-1k", tmp_path / "data", url=file_server.url)
    for name in ("vtab/dtd", "vtab/svhn"):
        splits = resolve_classes(folder, name=name)
        assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 3, 6]


def test_an_import(file_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_importing import write_cifar

    write_cifar(tmp_path / "made")
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as taped:
        taped.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    file_server.content = (tmp_path / "made.tar.gz").read_bytes()
    with pytest.raises(DataError, match="but the published hash is 85cd44d0"):
        fetch("cifar-100", tmp_path / "data", url=file_server.url)
    monkeypatch.setitem(SOURCES, "cifar-100", replace(SOURCES["cifar-100"], sha256=None))
    for _ in range(2):  # what is there already is not written again
        folder = fetch("cifar-100", tmp_path / "data", url=file_server.url)
    splits = resolve_classes(folder, name="cifar-100")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 6]


@pytest.mark.parametrize(("name", "own"), [("cifar-100", "train"), ("digits", "val"), ("kvasir-seg", "images")])
def test_data_of_the_user_is_never_touched(file_server, tmp_path: Path, name: str, own: str) -> None:
    picture = tmp_path / own / "cat" / "a.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"mine")
    with pytest.raises(DataError, match=rf"holds data that this fetch did not write \({own}\).*with --dir"):
        fetch(name, tmp_path, url=file_server.url)
    assert [path.name for path in tmp_path.rglob("*")] == [own, "cat", "a.png"] and picture.read_bytes() == b"mine"


def test_a_folder_of_the_same_name_as_one_in_the_archive(file_server, tmp_path: Path) -> None:
    file_server.content = packed(write_vtab(tmp_path / "vtab-1k", "dtd"), "zip")
    (tmp_path / "data" / "vtab-1k.part").mkdir(parents=True)  # of an interrupted fetch
    write_vtab(tmp_path / "data", "dtd", train=9)
    before = (tmp_path / "data" / "dtd" / "train800.txt").read_text()
    with pytest.raises(DataError, match=r"did not write \(dtd\)"):
        fetch("vtab-1k", tmp_path / "data", url=file_server.url)
    assert (tmp_path / "data" / "dtd" / "train800.txt").read_text() == before


def test_a_second_fetch_finishes_the_first_or_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fetch("digits", tmp_path)
    (tmp_path / "train" / "0" / "mine.png").write_bytes(b"mine")
    (tmp_path / "digits.part").mkdir()
    (tmp_path / "test").rename(tmp_path / "digits.part" / "test")  # it was stopped before the last one
    with caplog.at_level("INFO"):
        fetch("digits", tmp_path)
    assert "already, nothing to do" in caplog.text
    assert (tmp_path / "test" / "9").is_dir() and (tmp_path / "train" / "0" / "mine.png").exists()
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match=r"val of the fetched digits is gone; .*remove digits\.fetched"):
        fetch("digits", tmp_path)


def test_digits(tmp_path: Path) -> None:
    folder = fetch("digits", tmp_path / "digits")
    splits = resolve_classes(folder)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [200, 100, 1497]
    assert splits.classes == tuple("0123456789") and splits.notes == []
    assert np.bincount([item.label for item in splits.train]).tolist() == [20] * 10
    pixels = read_image(splits.train[0].image)
    assert pixels.shape == (64, 64, 3) and pixels.max() > 200


def test_faces(tmp_path: Path) -> None:
    splits = resolve_classes(fetch("faces", tmp_path / "faces"))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 20, 160]
    assert splits.classes == ("face", "other")
    assert [note.partition(": ")[2] for note in splits.notes] == ["constant image, every pixel has the same colour"]
    middle = [
        np.mean([read_image(item.image)[24:40, 24:40].mean() for item in splits.test if item.label == label])
        for label in (0, 1)
    ]
    assert middle[0] > middle[1]  # a lit nose, on the whole
