"""Gets public data sets and arranges them as `images/` and `masks/`, or as class folders."""

import logging
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from samtune.base.disk import disk_errors, write_text
from samtune.base.download import download
from samtune.data.importing import ARCHIVES, IMPORTERS
from samtune.data.packaged import PACKAGED
from samtune.data.pictures import SUFFIXES
from samtune.data.splits import PARTS
from samtune.errors import ConfigError, DataError, unknown_name

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """A data set that can be downloaded as one archive, zip or tar.

    Attributes:
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
        sha256=ARCHIVES["cifar-100"],
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
LAYOUT = (*PARTS, "images", "masks")  # what a data folder is read by


def fetch(name: str, target_dir: str | Path, *, url: str | None = None) -> Path:
    """Gets a data set: downloads its archive, unless it is there, and unpacks what is needed.

    Everything is written to `NAME.part` in the folder and moved when it is complete; `NAME.fetched` lists what was
    moved. Nothing else is ever removed or replaced.

    Args:
        name: one of `SOURCES` or `PACKAGED`.
        target_dir: gets the archive, and `images/` and `masks/` or class folders. A complete earlier result stays.
        url: another address of the same archive, such as a mirror.

    Raises:
        ConfigError: unknown name.
        DataError: no network, a damaged or unsafe archive, a folder that holds other data.
    """
    target = Path(target_dir)
    if name not in (*SOURCES, *PACKAGED):
        raise ConfigError(unknown_name("data set", name, [*SOURCES, *PACKAGED]))
    if _fetched(name, target):
        _log.info("%s is in %s already, nothing to do", name, target)
        return target
    _refuse_used(target, LAYOUT)  # before a long download
    if name in PACKAGED:
        _place(name, target, PACKAGED[name].write)
    else:
        _get(name, target, url)
    source = PACKAGED[name] if name in PACKAGED else SOURCES[name]
    _log.info("%s is in %s. Licence: %s", name, target, source.licence)
    return target


def _get(name: str, target: Path, url: str | None) -> None:
    """Downloads the archive of a data set and unpacks it."""
    source = SOURCES[name]
    suffix = next(suffix for suffix in (".tar.gz", ".tar", ".zip") if source.url.endswith(suffix))
    archive = download(url or source.url, target / f"{name}{suffix}", sha256=source.sha256)
    places = _pair_places if source.unpack == "pairs" else _folder_places
    importing = source.unpack == "import"
    _place(name, target, partial(IMPORTERS[name], archive) if importing else partial(_unpack, archive, places))
    if source.unpack == "pairs":
        images, masks = ({path.stem for path in (target / sub).glob("*")} for sub in ("images", "masks"))
        if images != masks:
            unpaired = len(images ^ masks)
            raise DataError(f"{target}: {unpaired} file(s) have no partner; see samtune data verify {target}")
        _log.info("%s: %d pairs in %s", name, len(images), target)


def _place(name: str, target: Path, write: Callable[[Path], object]) -> None:
    """Writes a data set to `NAME.part`, and moves what that holds into the folder."""
    part = target / f"{name}.part"
    with disk_errors(target):
        shutil.rmtree(part, ignore_errors=True)  # of an interrupted fetch
        part.mkdir(parents=True)
        write(part)
        entries = sorted(path.name for path in part.iterdir())
        _refuse_used(target, entries)
        write_text(target / f"{name}.fetched", "".join(f"{entry}\n" for entry in entries))
        for entry in entries:
            (part / entry).rename(target / entry)
        part.rmdir()


def _fetched(name: str, target: Path) -> bool:
    """Returns whether an earlier fetch is there; finishes one that was interrupted while it moved its folders."""
    record = target / f"{name}.fetched"
    if not record.is_file():
        return False
    part = target / f"{name}.part"
    entries = record.read_text(encoding="utf-8").splitlines()
    missing = [entry for entry in entries if not (target / entry).exists()]
    gone = [entry for entry in missing if not (part / entry).exists()]
    if gone:
        raise DataError(
            f"{target}: {', '.join(gone[:10])} of the fetched {name} is gone; fetch into another folder, or remove "
            f"{record.name} and what is left of the data"
        )
    with disk_errors(target):
        for entry in missing:
            (part / entry).rename(target / entry)
        shutil.rmtree(part, ignore_errors=True)
    return True


def _refuse_used(target: Path, names: Iterable[str]) -> None:
    used = [name for name in names if (target / name).exists()]
    if used:
        raise DataError(
            f"{target} holds data that this fetch did not write ({', '.join(used[:10])}), which stays as it is; "
            "choose another folder with --dir, or move it away"
        )


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


def _unpack(archive: Path, places: Places, target: Path) -> None:
    """Writes what is needed of an archive; all its names are checked before the first byte is written."""
    try:
        with _opened(archive) as files:
            members = {_safe(archive, name): opener for name, opener in files.items()}
            visible = [path for path in members if not path.name.startswith(".") and "__MACOSX" not in path.parts]
            chosen = places(visible)
            if not chosen:
                raise DataError(f"{archive}: holds no picture in a folder that is expected; is it the right file?")
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
