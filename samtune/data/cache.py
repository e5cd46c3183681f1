"""A small memory on disk of what was found out about files, so that a second start doesn't decode them again.

One JSON file per question in the user's cache folder. It is only ever a shortcut: a missing, damaged or
unwritable cache means that the answer is computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from samtune.base.disk import cache_folder, write_text
from samtune.base.download import file_sha256
from samtune.errors import DiskError

_log = logging.getLogger(__name__)


def remember(question: str, paths: Iterable[Path], answer: Callable[[], Any]) -> Any:
    """Returns the stored answer to a question about these files, or computes and stores it.

    Args:
        question: name and version of the question; change it when the rule behind the answer changes.
        paths: the files the answer depends on; any change of a path, size or time makes it a new question.
        answer: computes the answer, a JSON value.

    Returns:
        The answer, as JSON gives it back (tuples become lists).
    """
    path = cache_folder() / f"{question}-{fingerprint(paths)[:32]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _log.debug("nothing remembered at %s", path)
    except (OSError, ValueError) as err:
        _log.debug("what is remembered at %s can't be read, it is computed again: %s", path, err)
    computed = json.dumps(answer())
    try:
        write_text(path, computed)
    except DiskError as err:
        _log.debug("%s can't be written, the next start computes it again: %s", path, err)
    return json.loads(computed)


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """Returns the SHA-256 of each file in hex, remembered until one of them changes.

    Args:
        paths: files that can be read.
    """
    return [str(line) for line in remember("contents-1", paths, lambda: [file_sha256(path) for path in paths])]


def fingerprint(paths: Iterable[Path]) -> str:
    """Returns the SHA-256 of the paths, sizes and modification times of files, without opening them."""
    digest = hashlib.sha256()
    for path in paths:
        name = os.path.abspath(path).encode("utf-8", "surrogateescape")
        try:
            facts = path.stat()  # of what a link points to
            digest.update(name + f"|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_mode}\n".encode())
        except OSError as error:
            digest.update(name + f"|{error.errno}\n".encode())
    return digest.hexdigest()
