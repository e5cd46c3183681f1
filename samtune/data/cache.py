"""A small memory on disk of what was found out about files, so that a second start doesn't read them again.

One JSON file per question and folder in the user's cache, with an entry per file: a new file costs a look at that file
alone. It is only ever a shortcut: what is missing, damaged or can't be written is found out again. Of several processes
that write at once the last one wins, and the others look again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samtune.base.disk import cache_folder, write_bytes, write_text
from samtune.base.download import file_sha256
from samtune.errors import DataError, DiskError

_log = logging.getLogger(__name__)

Entries = Mapping[str, Sequence[Any]]
"""Name of a file in its folder to its stamp and the answer."""


def recall(question: str, paths: Sequence[Path], look: Callable[[Path], Any]) -> list[Any]:
    """Returns what was found out about each file, and looks at those that are new or changed, several at a time.

    Args:
        question: name and version of the question; change it when the rule behind the answer changes.
        paths: the files; any change of size, times or inode makes a file a new one.
        look: answers for one file, with a JSON value. A `DataError` is an answer too, and is not remembered.

    Returns:
        The answer for each path, as JSON gives it back (tuples become lists), or its `DataError`.
    """
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(path.parent, []).append(path)
    answers: dict[Path, Any] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for folder, members in folders.items():
            answers |= _recall_folder(_file(question, folder), members, look, threads)
    return [answers[path] for path in paths]


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """Returns the SHA-256 of each file in hex, remembered until it changes."""
    return [str(answer) for answer in recall("contents-2", paths, file_sha256)]


def drawn_file(kind: str, image: Path, sources: Sequence[Path], how: str) -> Path:
    """Returns where a map that was drawn for an image is kept: another place when a file changes, or how it is drawn.

    Args:
        kind: of map, the name of a folder.
        sources: the files that it depends on.
    """
    stamps = []
    for path in sources:
        facts = path.stat()
        stamps.append(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}")
    marks = hashlib.sha256("|".join([how, *stamps]).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / kind / marks[:32] / f"{image.stem}.png"


def save_drawn(target: Path, values: np.ndarray) -> Path:
    """Writes an (H, W) map of uint8 or uint16 as a PNG, and returns its file."""
    file = BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    write_bytes(target, file.getvalue())
    return target


def _recall_folder(
    file: Path, paths: Sequence[Path], look: Callable[[Path], Any], threads: Executor
) -> dict[Path, Any]:
    """Answers for files of one folder, and stores what is new before the next folder's turn."""
    known = _read(file)
    stamps = {path: _stamp(path) for path in paths}  # before any look: what changes meanwhile is looked at again
    new = [path for path, stamp in stamps.items() if stamp is None or stamp != known.get(path.name, (None,))[0]]
    looked = dict(zip(new, threads.map(partial(_answer, look), new), strict=True))
    sure = [path for path in new if stamps[path] is not None and not isinstance(looked[path], DataError)]
    if sure:
        _write(file, {**known, **{path.name: (stamps[path], looked[path]) for path in sure}})
    return looked | {path: known[path.name][1] for path in paths if path not in looked}


def _answer(look: Callable[[Path], Any], path: Path) -> Any:
    try:
        return json.loads(json.dumps(look(path)))
    except DataError as error:
        return error


def _stamp(path: Path) -> str | None:
    """Returns what changes with a file, without opening it; None where it can't be told."""
    try:
        facts = path.stat()  # of what a link points to
    except OSError:
        return None
    return f"{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}|{facts.st_ino}"  # ctime: no tool sets it back


def _file(question: str, folder: Path) -> Path:
    place = hashlib.sha256(os.path.abspath(folder).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / f"{question}-{place[:32]}.json"


def _read(file: Path) -> Entries:
    """Returns the entries of a file, which begins with the hash of the rest; none where that does not fit."""
    try:
        mark, _, text = file.read_text(encoding="utf-8").partition("\n")
        if mark != _mark(text):
            raise ValueError("damaged")
        entries: Entries = json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        _log.debug("what is remembered at %s can't be read, it is found out again: %s", file, err)
        return {}
    return entries


def _write(file: Path, entries: Entries) -> None:
    text = json.dumps(entries)
    try:
        write_text(file, f"{_mark(text)}\n{text}")
    except DiskError as err:
        _log.debug("%s can't be written, the next start looks again: %s", file, err)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
