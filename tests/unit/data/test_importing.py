"""CIFAR-100's pickles become class folders, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from samtune.data.importing import import_data
from samtune.data.pictures import read_image
from samtune.errors import ConfigError, DataError
from samtune.tasks.classes.splits import resolve_classes


def write_cifar(folder: Path, **changes: Any) -> Path:
    """Writes `cifar-100-python` with two classes; `changes` replace the content of a file."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"meta": {"fine_label_names": ["apple", "sweet_pepper"]}}
    for part, count in (("train", 40), ("test", 6)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        content[part] = {"data": pixels, "fine_labels": [i % 2 for i in range(count)], "filenames": ["x"] * count}
    root = folder / "cifar-100-python"
    root.mkdir(parents=True)
    for name, value in (content | changes).items():
        (root / name).write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=4))
    return folder


class Runs:
    """Executes a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["parent", "folder", "archive"])
def test_import(tmp_path: Path, kind: str) -> None:
    source = write_cifar(tmp_path / "source")
    content = pickle.loads((source / "cifar-100-python" / "train").read_bytes())
    if kind == "folder":
        source /= "cifar-100-python"
    elif kind == "archive":
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
            archive.add(source / "cifar-100-python", "cifar-100-python")
        source = tmp_path / "cifar-100-python.tar.gz"
    folder = import_data("cifar-100", source, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]
    splits = resolve_classes(folder, name="cifar-100")
    assert splits.classes == ("apple", "sweet_pepper")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 6]
    pixels = read_image(folder / "train" / "sweet_pepper" / "00003.png")
    assert (pixels == content["data"][3].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    with pytest.raises(DataError, match=r"holds train/, test/ already; choose another folder"):
        import_data("cifar-100", source, folder)


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """Its strings are bytes, and numpy's old module names are in it."""
    array = pickle.dumps(np.zeros((1, 3072), np.uint8), protocol=4)
    old = pickle.dumps({"fine_labels": [1]}, protocol=2)
    assert b"numpy._core.multiarray" in array and b"U" not in old[:2]
    renamed = array.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    renamed = renamed[:3] + (len(renamed) - 11).to_bytes(8, "little") + renamed[11:]
    # {"data": <array>, "fine_labels": [1]} with the keys as Python 2 strings (opcode U)
    body = b"\x80\x04}(U\x04data" + renamed[11:-1] + b"U\x0bfine_labels](K\x01eu."
    out = import_data("cifar-100", write_cifar(tmp_path / "source", test=body), tmp_path / "out")
    assert read_image(out / "test" / "sweet_pepper" / "00000.png").max() == 0


def test_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    source = write_cifar(tmp_path / "source", test={"data": Runs(f"touch {mark}")})
    with pytest.raises(DataError, match=r"refused to load the pickle: it names \w+\.system"):
        import_data("cifar-100", source, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": b"\x80\x04}"}, "damaged pickle"),
        ({"train": b""}, "damaged pickle"),
        ({"meta": {"coarse_label_names": []}}, "no list 'fine_label_names'; is it the python version"),
        ({"meta": {"fine_label_names": ["../a"]}}, "not plain words"),
        ({"train": {"data": [1], "fine_labels": [0]}}, "no ndarray 'data'"),
        ({"train": {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}}, "train is not"),
        ({"train": {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [2]}}, "train is not"),
        ({"test": {"data": np.zeros((0, 3072), np.uint8), "fine_labels": []}}, "test is not N > 0 images"),
        ({"train": {"data": np.zeros((1, 3072)), "fine_labels": [0]}}, r"found: \(1, 3072\) of float64, 1 labels"),
        ({"train": {"data": np.zeros((1, 32, 32, 3), np.uint8), "fine_labels": [0]}}, "train is not"),
        ({"test": {"data": np.array(None), "fine_labels": [0]}}, r"found: \(\) of object|damaged pickle"),
    ],
    ids=["cut", "empty", "names", "unsafe", "list", "lengths", "label", "none", "float", "shape", "object"],
)
def test_damaged_sources(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_data("cifar-100", write_cifar(tmp_path / "source", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [zlib.error("invalid distance"), EOFError("cut"), tarfile.ReadError("short")])
def test_a_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What is raised depends on where the damage is: in a header, in the data, or at the end."""
    file = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(write_cifar(tmp_path / "source") / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(tarfile.ExFileObject, "read", Mock(side_effect=error))
    with pytest.raises(DataError, match=rf"\.tar\.gz: damaged archive \({error}\); get it again"):
        import_data("cifar-100", file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_packed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(write_cifar(tmp_path / "source") / "cifar-100-python", "cifar-100-python")
    import_data("cifar-100", file, tmp_path / "out")
    assert "is not the published archive, but packed anew or damaged: its SHA-256 is" in caplog.text


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown import 'cifar-10'"):
        import_data("cifar-10", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="gone does not exist; give the archive or the folder"):
        import_data("cifar-100", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match=r"no cifar-100-python/meta in it"):
        import_data("cifar-100", tmp_path, tmp_path / "out")
    (tmp_path / "a.tar.gz").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.tar\.gz: damaged archive"):
        import_data("cifar-100", tmp_path / "a.tar.gz", tmp_path / "out")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"no cifar-100-python/meta in it"):
        import_data("cifar-100", tmp_path / "b.tar.gz", tmp_path / "out")
