"""Fixtures of the contracts: every case of `cases.CASES` in turn."""

from __future__ import annotations

import pytest
from cases import CASES, make_selection
from toy import toy_model

from samtune.selection import Selection


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Names a selection."""
    return str(request.param)


@pytest.fixture
def selection(case: str) -> Selection:
    """What trains in the case."""
    return make_selection(case, toy_model())
