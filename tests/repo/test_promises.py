"""Every promise of `docs/reliability.md` names tests that are there, and every test of faults belongs to one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not re.match(r"\| *promise *\||\|-", line)
]
NAMED = [re.findall(r"`((?:faults|unit|recipes|repo)/(?:\w+/)*(?:test_\w+\.py)?)`", row) for row in ROWS]


def test_every_promise_names_a_test() -> None:
    assert len(ROWS) > 40
    assert [row for row, named in zip(ROWS, NAMED, strict=True) if not named] == []


def test_the_tests_that_are_named_are_there() -> None:
    for name in {name for named in NAMED for name in named}:
        place = ROOT / "tests" / name
        files = list(place.glob("test_*.py")) if name.endswith("/") else [place]
        assert files, name
        assert all("def test_" in file.read_text(encoding="utf-8") for file in files), name


def test_every_test_of_faults_is_named() -> None:
    named = {name for named in NAMED for name in named}
    files = {f"faults/{file.name}" for file in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert files - named == set()
