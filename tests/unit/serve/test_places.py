"""Places go to new clients when slow ones hold them, and the client that holds most gives first."""

from __future__ import annotations

import time

import pytest

from samtune.serve.places import Place, Places


def taken(places: Places, client: str, *, age: float, gone: list[str]) -> Place:
    place = places.take(client)
    assert place is not None
    place.leave, place.since = lambda: gone.append(f"{client} {age:g}"), time.monotonic() - age
    return place


def test_full_is_full_while_nobody_takes_long() -> None:
    places, gone = Places(2), list[str]()
    place = taken(places, "a", age=0.5, gone=gone)
    assert places.take("b") is not None and places.take("c") is None
    places.free(place)
    assert places.take("c") is not None and gone == []


def test_what_is_computed_is_not_taken_away() -> None:
    places = Places(1)
    place = taken(places, "a", age=50, gone=[])
    place.leave = None
    assert places.take("b") is None


def test_the_client_with_most_slow_ones_gives_its_oldest() -> None:
    places, gone = Places(4), list[str]()
    taken(places, "honest", age=30, gone=gone)
    for age in (3, 9, 5):
        taken(places, "greedy", age=age, gone=gone)
    assert places.take("new") is not None and places.take("new") is not None
    assert gone == ["greedy 9", "greedy 5"]
    assert places.take("new") is not None
    assert gone[2:] == ["honest 30"]  # among equals, the oldest


@pytest.mark.parametrize("times", [1, 2])
def test_a_place_that_was_taken_away_can_still_be_given_back(times: int) -> None:
    places, gone = Places(1), list[str]()
    first = taken(places, "a", age=9, gone=gone)
    assert places.take("b") is not None
    for _ in range(times):
        places.free(first)
    assert gone == ["a 9"] and places.take("c") is None
