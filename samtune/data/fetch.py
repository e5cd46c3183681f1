"""Gets public data sets and arranges them as `images/` and `masks/`."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from samtune.data.pairs import SUFFIXES, find_pairs
from samtune.download import download
from samtune.errors import DataError, unknown_name

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSource:
    """A data set that can be downloaded as one zip file.

    Attributes:
        url: address of the archive.
        licence: what a user has to know before using it.
    """

    url: str
    licence: str


SOURCES = {
    "kvasir-seg": DataSource(
        url="https://datasets.simula.no/downloads/kvasir-seg.zip",
        licence="research and educational use only; cite Jha et al., Kvasir-SEG, MMM 2020",
    ),
}


def fetch(name: str, target_dir: str | Path, *, url: str | None = None) -> Path:
    """Downloads a data set, unless its archive is there, and unpacks its images and masks.

    Args:
        name: one of `SOURCES`.
        target_dir: gets the archive `NAME.zip`, `images/` and `masks/`.
        url: another address of the same archive, such as a mirror.

    Returns:
        The folder, ready for `data.dir`.

    Raises:
        DataError: unknown name, no network (says which file to put where), a damaged or unsafe archive.
        DiskError: the folder can't be written.
    """
    if name not in SOURCES:
        raise DataError(unknown_name("data set", name, SOURCES))
    source, target = SOURCES[name], Path(target_dir)
    archive = download(url or source.url, target / f"{name}.zip")
    _unpack(archive, target)
    pairs = find_pairs(target)
    _log.info("%s: %d pairs in %s. Licence: %s", name, len(pairs), target, source.licence)
    return target


def _unpack(archive: Path, target: Path) -> None:
    """Writes the pictures of the archive's images and masks folders, flat: no name in it chooses a path."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = list(_pictures(opened, archive))
            if not members:
                raise DataError(f"{archive}: holds no picture in a folder images/ or masks/; is it the right file?")
            for member, part, name in members:
                path = target / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, open(path, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: damaged archive ({error}); delete it and fetch again") from error


def _pictures(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[zipfile.ZipInfo, str, str]]:
    """Yields (member, "images" or "masks", file name) of what is to be unpacked."""
    for member in opened.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename:
            raise DataError(f"{archive}: unsafe path {member.filename!r} in the archive; don't use this file")
        hidden = path.name.startswith(".") or "__MACOSX" in path.parts
        if path.parent.name in ("images", "masks") and path.suffix.lower() in SUFFIXES and not hidden:
            yield member, path.parent.name, path.name
