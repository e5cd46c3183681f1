"""Gets public data sets and arranges them as `images/` and `masks/`, or as class folders."""

from __future__ import annotations

import logging
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
from PIL import Image

from samtune.data.importing import import_data, write_class_images
from samtune.data.pairs import SUFFIXES, find_pairs
from samtune.download import download
from samtune.errors import DataError, unknown_name
from samtune.runfolder import disk_errors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """A data set that can be downloaded as one archive.

    Attributes:
        url: address of the archive, zip or tar.
        licence: what a user has to know before using it.
        unpack: what is made of it: "pairs": images/ and masks/, flat; "folders": its folders as they are, without
            the outermost one; "import": what `samtune data import` makes of it.
        sha256: of the archive, where independent public sources agree on it.
    """

    url: str
    licence: str
    unpack: Literal["pairs", "folders", "import"]
    sha256: str | None = None


SOURCES = {
    "kvasir-seg": DataSource(
        url="https://datasets.simula.no/downloads/kvasir-seg.zip",
        licence="research and educational use only; cite Jha et al., Kvasir-SEG, MMM 2020",
        unpack="pairs",
    ),
    "cifar-100": DataSource(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        licence="none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        unpack="import",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    "vtab-1k": DataSource(
        url="https://huggingface.co/datasets/XiN0919/VTAB-1k/resolve/main/vtab-1k.zip",
        licence="each of the 19 data sets has its own; cite Zhai et al., VTAB, 2019, and the data sets",
        unpack="folders",
    ),
    "imagenet-a": DataSource(
        url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        licence="each image keeps its own; cite Hendrycks et al., Natural Adversarial Examples, CVPR 2021",
        unpack="folders",
    ),
    "imagenet-r": DataSource(
        url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        licence="each image keeps its own; cite Hendrycks et al., The Many Faces of Robustness, ICCV 2021",
        unpack="folders",
    ),
}
DIGITS = "digits"  # comes with scikit-learn and needs no network
DIGITS_LICENCE = "CC BY 4.0; Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998"


def fetch(name: str, target_dir: str | Path, *, url: str | None = None) -> Path:
    """Gets a data set: downloads its archive, unless it is there, and unpacks what is needed.

    Args:
        name: one of `SOURCES`, or "digits".
        target_dir: gets the archive, and `images/` and `masks/` or class folders.
        url: another address of the same archive, such as a mirror.

    Returns:
        The folder, ready for `data.dir`.

    Raises:
        DataError: unknown name, no network (says which file to put where), a damaged or unsafe archive.
        DiskError: the folder can't be written.
    """
    target = Path(target_dir)
    if name == DIGITS:
        _write_digits(target)
        return target
    if name not in SOURCES:
        raise DataError(unknown_name("data set", name, [*SOURCES, DIGITS]))
    source = SOURCES[name]
    archive = download(url or source.url, target / f"{name}{_suffix(source.url)}", sha256=source.sha256)
    if source.unpack == "import":
        if not (target / "test").exists():  # written last
            shutil.rmtree(target / "train", ignore_errors=True)
            import_data(name, archive, target)
    else:
        _unpack(archive, target, _pair_places if source.unpack == "pairs" else _folder_places)
    if source.unpack == "pairs":
        _log.info("%s: %d pairs in %s", name, len(find_pairs(target)), target)
    _log.info("%s is in %s. Licence: %s", name, target, source.licence)
    return target


def _suffix(url: str) -> str:
    return next(suffix for suffix in (".tar.gz", ".tar", ".zip") if url.endswith(suffix))


Places = Callable[[list[PurePosixPath]], dict[PurePosixPath, PurePosixPath]]
"""The members of an archive to where they go in the target folder; what isn't needed is left out."""


def _pair_places(members: list[PurePosixPath]) -> dict[PurePosixPath, PurePosixPath]:
    """Flat: only the name of the last folder and of the file choose a path."""
    wanted = [m for m in members if m.parent.name in ("images", "masks") and m.suffix.lower() in SUFFIXES]
    return {member: PurePosixPath(member.parent.name, member.name) for member in wanted}


def _folder_places(members: list[PurePosixPath]) -> dict[PurePosixPath, PurePosixPath]:
    """Pictures and lists in their folders, without an outermost one that holds all of them."""
    inside = [m for m in members if len(m.parts) > 1 and m.suffix.lower() in (*SUFFIXES, ".txt")]
    start = 1 if len({member.parts[0] for member in inside}) == 1 else 0
    return {member: PurePosixPath(*member.parts[start:]) for member in inside if len(member.parts) > start + 1}


def _unpack(archive: Path, target: Path, places: Places) -> None:
    """Writes what is needed of an archive; all its names are checked before the first byte is written."""
    try:
        with _opened(archive) as files:
            members = {_safe(archive, name): opener for name, opener in files.items()}
            visible = [path for path in members if not path.name.startswith(".") and "__MACOSX" not in path.parts]
            chosen = places(visible)
            if not chosen:
                raise DataError(f"{archive}: holds no picture in a folder that is expected; is it the right file?")
            with disk_errors(target):
                for path, inside in chosen.items():
                    written = target / inside
                    written.parent.mkdir(parents=True, exist_ok=True)
                    with members[path]() as packed, open(written, "wb") as file:
                        shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: damaged archive ({error}); delete it and fetch again") from error


def _safe(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise DataError(f"{archive}: unsafe path {name!r} in the archive; don't use this file")
    return path


@contextmanager
def _opened(archive: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """Opens a zip or tar archive: the name of each regular file, and what opens it. Links are left out."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            yield {name: partial(zipped.open, name) for name in zipped.namelist() if not name.endswith("/")}
    else:
        with tarfile.open(archive) as taped:
            yield {member.name: partial(_tar_file, taped, member) for member in taped if member.isreg()}


def _tar_file(taped: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = taped.extractfile(member)
    assert file is not None  # it is for folders only
    return file


def _write_digits(target: Path) -> None:
    """Writes the handwritten digits of scikit-learn: real 8 x 8 pictures, enlarged to 64 x 64 RGB.

    Split with a fixed seed: 20 training and 10 validation images of each digit, the other 1,497 are for testing.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        order = np.random.default_rng((0, digit)).permutation(np.flatnonzero(digits.target == digit)).tolist()
        chosen["train"] += order[:20]
        chosen["val"] += order[20:30]
        chosen["test"] += order[30:]
    with disk_errors(target):
        for part, indices in chosen.items():
            images = np.stack([_enlarge(digits.images[i]) for i in indices])
            write_class_images(images, [str(digits.target[i]) for i in indices], target / part)
    _log.info("%s: %d images in %s. Licence: %s", DIGITS, len(digits.images), target, DIGITS_LICENCE)


def _enlarge(levels: np.ndarray) -> np.ndarray:
    """Returns (8, 8) levels of 0 to 16 as (64, 64, 3) uint8."""
    grey = Image.fromarray(np.rint(levels * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB"))
