"""What a run keeps while it scores and trains, and when: often enough to lose little, seldom enough to cost little."""

import hashlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from samtune.base.signals import Stop, Stopped, deferred
from samtune.errors import CheckpointError, DiskError
from samtune.run.checkpoints.state import Progress, TrainState
from samtune.run.checkpoints.store import Checkpoint, Checkpoints
from samtune.scoring.score import PartialScores

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""Between two checkpoints at least, which is what a kill loses at most where saving is quick."""
SHARE = 50
"""Between two checkpoints passes at least so many times what one costs: 2 % of the time goes into saving."""
CHECKPOINTS = "checkpoints"
STEP, BEST, SCORE = "step", "best", "score"


class RunKeeper:
    """Keeps the states of a run's training: the last two, and the best weights that they name.

    Args:
        folder: of the run; they are in its `checkpoints`.
        about: see `Checkpoints`.
        writes: False for a process whose states another one writes.
    """

    def __init__(self, folder: Path, about: Mapping[str, str], *, writes: bool = True) -> None:
        self.folder, self.checkpoints, self.writes = folder, Checkpoints(folder / CHECKPOINTS, about), writes
        self.start: TrainState | None = None
        self.events: int | None = None
        """Number of events that were logged by the state to start from; None without one."""
        self._events: Callable[[], int] = int
        self._selection = ""  # SHA-256 of its file
        self._stop = Stop()
        self._saved = time.monotonic()
        self._cost = 0.0
        self._best_in: tuple[int, str] | None = None  # steps of the best epoch, and where its weights are
        self._kept: list[tuple[str, str | None]] = []  # checkpoints with where their best weights are, the newest first

    def read(self) -> None:
        """Finds the newest state to start from.

        Raises:
            CheckpointError: there are checkpoints, and none can be used.
        """
        self.checkpoints.newest(STEP, self._take)

    @contextmanager
    def training(self, selection: Path, events: Callable[[], int]) -> Iterator[None]:
        """Surrounds the training: asked to end, the process first finishes its step and saves.

        Args:
            selection: the file of what trains.
            events: returns the number of events that the run has logged so far.

        Raises:
            CheckpointError: the state to start from is of another selection.
        """
        self._events, self._saved = events, time.monotonic()
        digest, earlier = hashlib.sha256(selection.read_bytes()).hexdigest(), self._selection
        if self.start is not None and earlier != digest:
            raise CheckpointError(
                f"{selection} is not the selection of the checkpoints (SHA-256 {digest[:12]}, was {earlier[:12]}). Put "
                "that back, or start anew with --overwrite."
            )
        self._selection = digest
        with deferred("finishes this step and saves") as self._stop:
            yield
            self._stop.end()

    def due(self) -> bool:
        """Tells whether it is time to save."""
        return _is_due(self._saved, self._cost)

    def asked_to_end(self) -> bool:
        """Tells whether the process shall end."""
        return bool(self._stop)

    def end(self) -> None:
        """Ends the process, as the signal asks that it, or another one that trains with it, got."""
        raise Stopped(self._stop.number or signal.SIGTERM)

    def save(self, state: TrainState) -> None:
        """Writes a state, and the best weights if they are new; removes what is older than the last two.

        Raises:
            DiskError: there is no room, not even without the older ones.
        """
        if not self.writes:
            return
        began = time.monotonic()
        try:
            name = self._write(state)
        except DiskError:
            self._kept = self._kept[:1]  # on a full disk, one is worth more than two
            self._tidy()
            name = self._write(state)
        self._kept = [(name, self._best_in and self._best_in[1]), *self._kept][: 1 if state.progress.finished else 2]
        self._tidy()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def _tidy(self) -> None:
        """Removes all checkpoints but the last ones and what they name; the scoring pass is over."""
        named = {name for pair in self._kept for name in pair if name is not None}
        if self._best_in is not None:  # of a state that is about to be written
            named.add(self._best_in[1])
        self.checkpoints.keep(named, (STEP, BEST, SCORE))

    def _write(self, state: TrainState) -> str:
        now = state.progress
        if state.best is not None and (self._best_in is None or self._best_in[0] != now.best_step):
            name = self.checkpoints.save(BEST, now.best_step, {"values": state.best}, {})
            self._best_in = (now.best_step, name)
        tensors = {"values": state.values, "optimizer": state.optimizer}
        tensors |= {} if state.averages is None else {"averages": state.averages}
        best = None if self._best_in is None else self._best_in[1]
        content = {"progress": asdict(now), "random": state.random, "best": best, "events": self._events()}
        content["selection"] = self._selection
        return self.checkpoints.save(STEP, now.step, tensors, content)

    def _take(self, found: Checkpoint) -> None:
        """Takes a checkpoint as the state to start from."""
        try:
            progress = Progress(**found.state["progress"])
            best_name, self.events, random = found.state["best"], int(found.state["events"]), found.state["random"]
            values, moments = found.tensors["values"], found.tensors["optimizer"]
            self._selection = str(found.state["selection"])
        except (KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"{self.checkpoints.folder / found.name} is of another version ({err!r}).") from err
        best = None if best_name is None else self.checkpoints.load(best_name).tensors["values"]
        self.start = TrainState(progress, values, moments, found.tensors.get("averages"), best, random)
        self._best_in = None if best_name is None else (progress.best_step, best_name)
        self._kept = [(found.name, best_name)]
        logger.info("goes on after step %d, from %s", progress.step, self.checkpoints.folder / found.name)


class ScoreKeeper:
    """Keeps a scoring pass that may be cut off."""

    def __init__(self, folder: Path, *, about: Mapping[str, str], stop: Stop) -> None:
        self.checkpoints, self.stop = Checkpoints(folder / CHECKPOINTS, about), stop
        self.start: PartialScores | None = None
        self.earlier = 0.0
        """Seconds that the pass took before it was cut off, as far as it is kept."""
        self._began = self._saved = time.monotonic()
        self._cost = 0.0

    def read(self) -> None:
        """Finds the pass to go on with; one that can't be used is said, and scored anew."""
        try:
            self.start = self.checkpoints.newest(SCORE, self._take)
        except CheckpointError:
            return
        if self.start is not None:
            logger.info("the scoring pass goes on after %d batches", self.start.taken)

    def offer(self, make: Callable[[], PartialScores]) -> None:
        """Saves if it is time to, or if the process shall end, which it then does."""
        if not self.stop and not _is_due(self._saved, self._cost):
            return
        began, found = time.monotonic(), make()
        tensors = {"sums": found.sums} | ({} if found.squares is None else {"squares": found.squares})
        counts: dict[str, float] = {"taken": found.taken, "counted": found.counted, "skipped": found.skipped}
        counts["seconds"] = self.earlier + began - self._began
        name = self.checkpoints.save(SCORE, found.taken, tensors, counts)
        self.checkpoints.keep({name}, (SCORE,))
        self._saved = time.monotonic()
        self._cost = self._saved - began
        self.stop.end()

    def _take(self, found: Checkpoint) -> PartialScores:
        state = dict(found.state)
        try:
            self.earlier = float(state.pop("seconds", 0.0))  # an older version has none
            partial = PartialScores(**state, sums=found.tensors["sums"], squares=found.tensors.get("squares"))
        except (KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"the scores of {found.name} are of another version ({err!r}).") from err
        return partial


def _is_due(saved: float, cost: float) -> bool:
    """Tells whether it is time to save, by when that was done last and the seconds that it took."""
    return time.monotonic() - saved >= max(SECONDS, SHARE * cost)
