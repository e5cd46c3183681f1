from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from samtune.base import signals
from samtune.base.signals import Stopped, deferred, end_by_signals


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Whoever runs the tests may ignore signals, as of a job in the background."""
    before = {number: signal.getsignal(number) for number in signals.ASKING}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_waits_and_the_second_ends(
    number: signal.Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped) as caught, caplog.at_level(logging.WARNING, "samtune"), deferred("saves") as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.number == number
        assert f"{number.name}: saves first; once more ends at once" in caplog.text
        os.kill(os.getpid(), number)  # the same one, which came by two ways
        monkeypatch.setattr(signals, "REPEAT", 0.0)
        os.kill(os.getpid(), number)
        raise AssertionError("the second signal did not end the process")
    assert caught.value.code == 128 + number


def test_end_raises_only_when_asked_to() -> None:
    with deferred("saves") as stop:
        stop.end()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.end()


def test_handlers_are_as_before_and_threads_have_none() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with deferred("saves"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    seen: list[bool] = []

    def work() -> None:
        with deferred("saves") as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_command_ends_with_the_number_of_its_signal() -> None:
    end_by_signals()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.code == code


def test_what_a_process_was_started_to_ignore_it_ignores() -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_by_signals()
    with deferred("saves") as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    os.kill(os.getpid(), signal.SIGHUP)
