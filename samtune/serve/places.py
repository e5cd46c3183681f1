"""Who may stay where places are short: whoever takes long gives way, first of all the client that holds most."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Place:
    """A place that is taken.

    Attributes:
        client: address of who takes it.
        leave: makes it free when another needs it; None while it must not be taken away.
        since: when the client began to take long, in seconds of `time.monotonic`.
    """

    client: str
    leave: Callable[[], None] | None = None
    since: float = field(default_factory=time.monotonic)


class Places:
    """A bounded number of places; all methods belong to one thread.

    Args:
        most: places there are.
        patience: seconds a client may take before its place can go to another.
    """

    def __init__(self, most: int, *, patience: float = 1.0) -> None:
        self.most, self.patience = most, patience
        self._taken: set[Place] = set()

    def take(self, client: str) -> Place | None:
        """Returns a place, if need be that of a slow client; None when there is none."""
        if len(self._taken) >= self.most and not self._make_room():
            return None
        place = Place(client)
        self._taken.add(place)
        return place

    def free(self, place: Place) -> None:
        """Gives a place back, which may have gone to another already."""
        self._taken.discard(place)

    def _make_room(self) -> bool:
        """Takes away the oldest place of the client that has most of those which can go."""
        before = time.monotonic() - self.patience
        slow = [place for place in self._taken if place.leave is not None and place.since < before]
        if not slow:
            return False
        share = Counter(place.client for place in slow)
        worst = max(slow, key=lambda place: (share[place.client], -place.since))
        self._taken.discard(worst)
        if worst.leave is not None:
            worst.leave()
        return True
