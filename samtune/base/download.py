"""Downloads of published files: resumed after an interruption, checked by SHA-256, never half there.

The bytes go to `NAME.part` beside the target, which gets its name only when the file is complete and its hash right.
"""

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

from samtune.errors import DataError, DiskError, SamtuneError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without a byte


def download(url: str, path: str | Path, *, sha256: str | None = None, error: type[SamtuneError] = DataError) -> Path:
    """Downloads a file unless it is there, and checks it.

    Args:
        sha256: its hash in hex; None where none is known from independent sources. Then the hash of the first download
            is kept in `NAME.sha256` for later ones: that notices a change, not a bad first download.

    Raises:
        SamtuneError: of class `error`: offline, refused, incomplete, or the hash differs.
        DiskError: the file can't be written.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise error(f"can't download {url!r}: only http and https addresses are fetched")
    if not path.exists():
        partial = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, partial)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as problem:
            raise error(
                f"can't download {url}: {getattr(problem, 'reason', problem)}. What has arrived is kept and "
                f"continued next time. Without network, get the file on another machine and put it at {path}"
            ) from problem
        except OSError as problem:
            raise DiskError(f"can't write {partial}: {problem}; free space or choose another folder") from problem
        _check(partial, path, sha256, error)
        partial.replace(path)
    else:
        _check(path, path, sha256, error)
    return path


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, partial: Path) -> None:
    """Appends what is missing of `url` to `partial`."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as problem:
        if problem.code != 416:  # range not satisfiable: the part is complete, or not of this file
            raise
        if problem.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        partial.unlink()
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
        have = 0
    with response:
        if response.status != 206:  # the server sends the whole file, whatever was asked
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _store(response, partial, have, total)
    if total is not None and partial.stat().st_size < total:
        raise ConnectionError(f"connection closed after {partial.stat().st_size:,} of {total:,} bytes")


def _store(response: http.client.HTTPResponse, partial: Path, have: int, total: int | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with open(partial, "ab" if have else "wb") as file, bar as progress:
        task = progress.add_task(partial.stem, total=total, completed=have)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _check(file: Path, path: Path, sha256: str | None, error: type[SamtuneError]) -> None:
    """Compares the hash of `file` with the known or the recorded one; records it when there is none."""
    record = path.with_name(path.name + ".sha256")
    recorded = record.read_text(encoding="ascii", errors="replace").split() if record.exists() else []
    wanted = sha256 or (recorded[0] if recorded else None)
    found = file_sha256(file)
    if wanted is not None and found != wanted:
        source = "the published hash" if sha256 else f"the hash of the first download in {record.name}"
        if file != path:
            file.unlink()  # continuing a wrong file can't make it right
        raise error(f"{path}: SHA-256 is {found}, but {source} is {wanted}; delete the file and download it again")
    if wanted is None:
        record.write_text(f"{found}  {path.name}\n", encoding="ascii")
        _log.warning("no published hash of %s: recorded %s in %s, later downloads are compared with it",
                     path.name, found, record.name)  # fmt: skip
