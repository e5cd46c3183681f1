"""Threads: as many as asked for, and a word where other work keeps them waiting."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from samtune.base.machine import set_threads


@pytest.fixture(autouse=True)
def as_many_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_threads_that_were_asked_for_are_taken() -> None:
    set_threads(3)
    assert torch.get_num_threads() == 3
    set_threads(None)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("busy", "threads", "said"), [(4.5, 4, True), (0.1, 4, False), (4.5, 1, False)])
def test_a_busy_machine_is_said_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, busy: float, threads: int, said: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, 0.0, 0.0))
    monkeypatch.setattr("samtune.base.machine.cores", lambda: 4)
    with caplog.at_level(logging.INFO, "samtune"):
        set_threads(threads)
    assert ("other work keeps 4.5 of 4 cores busy: run.threads=1 may be quicker" in caplog.text) == said
