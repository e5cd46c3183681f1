"""Two processes that train one model: the answer of one process, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from job import LITE, End, Prepare, Undisturbed, both, die, finetune, in_children, saving_always, trap, truths
from safetensors.torch import load_file

from samtune.run.updates import Updates

MORE = ("train.batch=4", "train.optimizer=adam")  # of 6 images: the last batch has 2


def together(
    data: Path, folder: Path, *more: str, prepare: dict[int, Prepare] | None = None, count: int = 2
) -> list[End]:
    """Runs the job in processes that train together; `prepare` is by their number."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def start(rank: int) -> Callable[[], None]:
        def work() -> None:
            shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "NODE_RANK": 0, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in shared.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            finetune(data, folder, *MORE, *more)()

        return work

    return in_children([(start(rank), (prepare or {}).get(rank)) for rank in range(count)])


def alone(data: Path, folder: Path, *more: str, prepare: Prepare | None = None) -> End:
    (end,) = in_children([(finetune(data, folder, *MORE, *more), prepare)])
    return end


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["split"] == "train"]


@pytest.fixture(scope="module")
def one(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert alone(undisturbed.data, folder).code == 0
    return folder


def test_two_processes_give_the_answer_of_one(one: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    ends = together(undisturbed.data, tmp_path / "run")
    assert [end.code for end in ends] == [0, 0], [end.said for end in ends]
    ours, theirs = (load_file(folder / "selection.safetensors") for folder in (tmp_path / "run", one))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-5)
    rows = (tmp_path / "run" / "per_image.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # each image once
    assert ends[1].said == ""  # one of them talks


def test_two_processes_train_sam_lite_as_one_does(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert alone(undisturbed.data, tmp_path / "one", *LITE).code == 0
    ends = together(undisturbed.data, tmp_path / "two", *LITE)
    assert [end.code for end in ends] == [0, 0], [end.said for end in ends]
    ours, theirs = (load_file(tmp_path / name / "selection.safetensors") for name in ("two", "one"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)  # 6e-8 was found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_within_30_seconds(rank: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    start = time.monotonic()
    ends = together(undisturbed.data, tmp_path / "run", prepare={rank: trap(Updates, "_update", 2, die)})
    assert time.monotonic() - start < 90  # 30, and what it takes to start on a slow machine
    assert ends[rank].code == -9 and ends[1 - rank].code not in (0, -9)


def test_an_error_in_one_ends_both(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bad sector")

    ends = together(undisturbed.data, tmp_path / "run", prepare={1: trap(Updates, "_accumulate", 3, fail)})
    assert all(end.code for end in ends)
    assert "a bad sector" in ends[1].said


def test_a_loss_that_is_not_finite_in_one_is_skipped_by_both(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def prepare() -> None:
        real, calls = Updates._accumulate, 0

        def broken(self: Updates, *args: Any) -> float:
            nonlocal calls
            calls += 1
            found = real(self, *args)
            return float("nan") if calls == 2 else found

        Updates._accumulate = broken  # type: ignore[method-assign]

    ends = together(undisturbed.data, tmp_path / "run", prepare={1: prepare})
    assert [end.code for end in ends] == [0, 0], [end.said for end in ends]
    assert "update skipped: loss nan" in ends[0].said
    assert losses(tmp_path / "run")[1] is None


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(
    first: int, second: int, one: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "run", trap(Updates, "_update", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    begun = together(
        undisturbed.data, folder, prepare=dict.fromkeys(range(first), both(saving_always, stop)), count=first
    )
    assert [end.code for end in begun] == [143] * first, [end.said for end in begun]
    ended = together(undisturbed.data, folder, count=second)
    assert [end.code for end in ended] == [0] * second, [end.said for end in ended]
    assert losses(folder) == pytest.approx(losses(one), abs=1e-5)
    assert truths(folder)["history"][-1]["split"] == "test"


def test_a_signal_to_one_saves_and_ends_both(undisturbed: Undisturbed, tmp_path: Path) -> None:
    stop = trap(Updates, "_update", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ends = together(undisturbed.data, tmp_path / "run", prepare={1: stop})
    assert [end.code for end in ends] == [143, 143], [end.said for end in ends]
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()
