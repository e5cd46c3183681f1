"""Six ways to ask a run to end: it saves first, says so by its exit code, and goes on to the same files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job import Prepare, Undisturbed, finetune, in_child, trap, truths

from samtune.base import signals
from samtune.run import publish, recipe
from samtune.run.updates import Updates
from samtune.scoring import score


def send(*numbers: signal.Signals) -> Callable[[], None]:
    def action() -> None:
        signals.REPEAT = 0.0  # two are two
        for number in numbers:
            os.kill(os.getpid(), number)

    return action


CASES: dict[str, tuple[Prepare, int, bool]] = {  # what happens, the exit code, whether it saves first
    "SIGTERM in a step": (trap(Updates, "_update", 5, send(signal.SIGTERM)), 143, True),
    "Ctrl-C in a step": (trap(Updates, "_update", 2, send(signal.SIGINT)), 130, True),
    "the terminal goes": (trap(Updates, "_update", 4, send(signal.SIGHUP)), 129, True),
    "SIGTERM in the scoring pass": (trap(score._Gradients, "take", 2, send(signal.SIGTERM)), 143, True),
    "Ctrl-C twice": (trap(Updates, "_update", 5, send(signal.SIGINT, signal.SIGINT)), 130, False),
    "SIGTERM in the evaluation": (trap(publish, "peak_mib", 2, send(signal.SIGTERM)), 143, True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_asked_to_end_goes_on_later(case: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    prepare, code, saves = CASES[case]
    work = finetune(undisturbed.data, tmp_path / "run")
    ended = in_child(work, prepare=prepare)
    assert ended.code == code, ended.said
    assert "Traceback" not in ended.said
    assert any((tmp_path / "run" / "checkpoints").glob("s*-*/manifest.json")) == saves
    resumed = in_child(work)
    assert resumed.code == 0, resumed.said
    assert truths(tmp_path / "run") == undisturbed.truths


def test_a_step_is_finished_before_it_is_saved(undisturbed: Undisturbed, tmp_path: Path) -> None:
    work = finetune(undisturbed.data, tmp_path / "run")
    ended = in_child(work, prepare=CASES["SIGTERM in a step"][0])
    assert "SIGTERM: finishes this step and saves first; once more ends at once" in ended.said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000005"]


@pytest.mark.parametrize("handles", [(2,), (1, 2)])
def test_a_reader_that_goes_away_does_not_end_a_run(
    handles: tuple[int, ...], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """As of `2>&1 | tee log` on a connection that was lost."""

    def lose_the_reader() -> None:
        read, write = os.pipe()
        os.close(read)
        for handle in handles:
            os.dup2(write, handle)

    ended = in_child(finetune(undisturbed.data, tmp_path / "run"), prepare=lose_the_reader)
    assert ended.code == 0
    assert truths(tmp_path / "run") == undisturbed.truths


def test_an_error_after_two_epochs_leaves_a_state_to_go_on_from(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a loader worker died")

    work = finetune(undisturbed.data, tmp_path / "run")
    ended = in_child(work, prepare=trap(Updates, "_accumulate", 7, fail))
    assert ended.code == 1 and "a loader worker died" in ended.said
    assert in_child(work).code == 0
    assert truths(tmp_path / "run") == undisturbed.truths


def test_what_fails_after_the_training_is_done_again_from_its_end(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no fonts")

    for name in ("merge_and_audit", "evaluate_model", "save_pages"):
        folder, work = tmp_path / name, finetune(undisturbed.data, tmp_path / name)
        ended = in_child(work, prepare=trap(recipe, name, 1, fail))
        assert ended.code == 1 and "no fonts" in ended.said

        resumed = in_child(work, prepare=trap(Updates, "make", 1, fail))  # it trains no further
        assert resumed.code == 0, resumed.said
        assert truths(folder) == undisturbed.truths
