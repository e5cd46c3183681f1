"""A tiny job that is run in children of this process, killed there at a chosen moment, and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 120  # for a child, whose work takes two
SETTINGS = (
    "run.seed=3", "run.device=cpu", "model.name=toy", "model.image_size=64", "score.batch=2", "score.cells=8",
    "train.batch=2", "train.epochs=3", "train.accumulate=1", "train.precision=fp32", "train.ema=0.5", "train.lr=0.02",
    "eval.overlays=0",
    "track.mlflow=false",
)  # fmt: skip
LITE = (
    "model.name=sam_lite", "model.image_size=128", "score.cells=12", "train.lr=0.001", "train.optimizer=adamw",
    "train.batch=4", "train.epochs=2", "eval.before=false", "run.threads=1",
)  # fmt: skip
"""The network of the quick start, by its optimizer; its cells are drawn, 12 of 64."""
TRUTHS = ("selection.safetensors", "delta.safetensors", "merged.safetensors", "metrics.json", "per_image.csv")
UNEQUAL = ("time", "images_per_s", "seconds", "memory_mib")  # of events: what no two runs share

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Prepare = Callable[[], None]


@dataclass(frozen=True)
class End:
    """How a child ended: its exit code or the negative number of a signal, and what it wrote to stderr."""

    code: int
    said: str = field(repr=False)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to: its data, and what it left."""

    data: Path
    truths: dict[str, Any]


def in_child(work: Callable[[], Any], *, prepare: Prepare | None = None) -> End:
    """Runs `work` in a fork of this process, which has imported everything already; see `in_children`."""
    return in_children([(work, prepare)])[0]


def in_children(works: Sequence[tuple[Callable[[], Any], Prepare | None]]) -> list[End]:
    """Runs several works at once, each in a fork of this process.

    Args:
        works: each with what is called before it in its child: sets limits, and traps that kill it; or None.
    """
    logs = [Path.cwd() / f"child-{time.monotonic_ns()}-{number}.log" for number in range(len(works))]
    running: dict[int, int] = {}
    for number, (work, prepare) in enumerate(works):
        pid = os.fork()
        if pid == 0:
            _be_child(work, prepare, logs[number])
        running[pid] = number
    codes, deadline = dict[int, int](), time.monotonic() + SECONDS
    while running:
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if running and time.monotonic() > deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            said = "\n".join(logs[number].read_text() for number in running.values())
            raise AssertionError(f"{len(running)} children did not end within {SECONDS} s:\n{said}")
        time.sleep(0.01)
    return [End(codes[number], log.read_text()) for number, log in enumerate(logs)]


def _be_child(work: Callable[[], Any], prepare: Prepare | None, log: Path) -> None:
    """Does the work and ends the process, whatever happens."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    os.dup2(file, 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # the test runner's go elsewhere
    for number in ASKING:  # whoever runs the tests may ignore them, as of a job in the background
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        if prepare is not None:
            prepare()
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a test may have closed it
                stream.flush()
        os._exit(code)


def samtune(*arguments: object) -> Callable[[], None]:
    """Returns a command as work for a child."""

    def work() -> None:
        from samtune.cli import main as cli

        cli.main([str(a) for a in arguments])

    return work


def finetune(data: Path, folder: Path, *more: str) -> Callable[[], None]:
    """Returns the job as work for a child: begun anew, or gone on with where there is something."""
    place = ("--run-dir", folder, "--resume", "auto")
    return samtune("finetune", "--config", "polyp.yaml", *place, *SETTINGS, f"data.dir={data}", *more)


def truths(folder: Path) -> dict[str, Any]:
    """Returns what must be equal between a run and one that was cut off and resumed."""
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in TRUTHS}
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    found["history"] = [{name: value for name, value in event.items() if name not in UNEQUAL} for event in events]
    return found


def die() -> None:
    """Kills this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def trap(owner: Any, name: str, nth: int, action: Callable[[], None], *, after: bool = False) -> Prepare:
    """Returns a `prepare` that does `action` at the nth call of a function, before it or after it."""

    def prepare() -> None:
        real, calls = getattr(owner, name), 0

        def trapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth and not after:
                action()
            found = real(*args, **options)
            if calls == nth and after:
                action()
            return found

        setattr(owner, name, trapped)

    return prepare


def saving_always() -> None:
    """Lets a training save after every step, and a scoring pass after every batch."""
    from samtune.run.checkpoints import keep

    keep.SECONDS = 0.0
    keep.SHARE = 0


def both(*prepares: Prepare) -> Prepare:
    """Returns a `prepare` of several."""

    def prepare() -> None:
        for one in prepares:
            one()

    return prepare
