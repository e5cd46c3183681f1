"""Nothing in the repository that belongs to one machine or one person."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"runs", "__pycache__", "build", "dist", "uv.lock", "mlruns", "kvasir-seg"}  # written or fetched
HIDDEN = {".ci", ".github"}

# Put together from parts, so that this file does not match itself.
FORBIDDEN = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----",
    "GitHub token": r"\bgh[pousr]" + r"_[A-Za-z0-9]{20,}",
    "GitLab token": r"\bglpat" + r"-[A-Za-z0-9_-]{16,}",
    "Hugging Face token": r"\bhf" + r"_[A-Za-z0-9]{20,}",
    "AWS key": r"\b(AKIA|ASIA)" + r"[A-Z0-9]{16}\b",
    "Slack token": r"\bxox[abpr]" + r"-[A-Za-z0-9-]{10,}",
    "API key": r"\bsk" + r"-[A-Za-z0-9_-]{20,}",
    "assigned secret": r"(?i)\b(api_?key|secret|token|passw(or)?d)\s*[:=]\s*[\"'][A-Za-z0-9+/_-]{20,}[\"']",
    "login in a URL": r"[a-z]+://[^/\s:@\"'{}<>]+:" + r"[^/\s:@\"'{}<>]+@",
    "package index": r"(?i)(--?(extra-)?index" + r"-url|(extra-)?index" + r"-url\s*=|find" + r"-links)",
    "private host": r"(?i)https?://[a-z0-9.-]+\.(internal|corp|lan|local)\b",
    "home folder": r"(?<![\w.])/(home|Users)/" + r"[a-z]\w*/",
    "root's folder": r"(?<![\w.])/ro" + r"ot/",
    "work folder": r"(?<![\w.])/(wo" + r"rk|work" + r"space)/",
    "temporary folder": r"(?<![\w.])/t" + r"mp/",
    "Windows folder": r"\b[A-Z]:\\\\?Users\\",
}


def text_files() -> Iterator[tuple[Path, str]]:
    """Every text file of the project, whether committed yet or not."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and (name[0] != "." or name in HIDDEN)]
        for path in [Path(folder, name) for name in names if name not in SKIPPED]:
            with suppress(UnicodeDecodeError):  # a picture or weights
                yield path, path.read_text(encoding="utf-8")


def test_nothing_private_is_in_the_files() -> None:
    found, seen = [], set()
    for path, text in text_files():
        name = str(path.relative_to(ROOT))
        seen.add(name)
        for kind, pattern in FORBIDDEN.items():
            for match in re.finditer(pattern, text):
                found.append(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {kind}")
    assert {"pyproject.toml", "samtune/config/load.py", "tests/repo/test_secrets.py"} <= seen
    assert found == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("GitHub token", "ghp" + "_" + "a1" * 15),
        ("Hugging Face token", "hf" + "_" + "Ab" * 15),
        ("AWS key", "AKIA" + "A1" * 8),
        ("assigned secret", "api_key = '" + "a1" * 12 + "'"),
        ("login in a URL", "https://me:" + "word@host/simple"),
        ("package index", "--extra-index" + "-url https://x"),
        ("private host", "http://nexus" + ".internal/simple"),
        ("home folder", "/home" + "/anna/data"),
        ("root's folder", "cd /ro" + "ot/x"),
        ("work folder", "/wo" + "rk/x"),
        ("temporary folder", "'/t" + "mp/x'"),
        ("private key", "-----BEGIN RSA PRIVATE" + " KEY-----"),
    ],
)
def test_the_patterns_match_what_they_are_for(kind: str, text: str) -> None:
    assert re.search(FORBIDDEN[kind], text)
