"""Ten kills at random moments of one run, which then ends with the files of the undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from job import Prepare, Undisturbed, both, finetune, in_child, saving_always, truths


def dies_after(seconds: float) -> Prepare:
    """The alarm's own action ends a process as kill -9 does: nothing is cleaned up."""

    def prepare() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return prepare


def test_ten_kills_at_random_moments_change_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    work = finetune(undisturbed.data, tmp_path / "run")
    start = time.monotonic()
    assert in_child(finetune(undisturbed.data, tmp_path / "timed"), prepare=saving_always).code == 0
    usual = time.monotonic() - start
    rng, killed = random.Random(0), 0
    while killed < 10:
        end = in_child(work, prepare=both(saving_always, dies_after(rng.uniform(0.05, 0.6) * usual)))
        assert end.code in (0, -signal.SIGALRM), end.said
        killed += end.code != 0
        if end.code == 0:  # it was finished before its tenth kill: what comes now does the end again
            assert truths(tmp_path / "run") == undisturbed.truths
    assert in_child(work, prepare=saving_always).code == 0
    assert truths(tmp_path / "run") == undisturbed.truths
