from __future__ import annotations

import logging
import re
from io import StringIO

import pytest
from rich.console import Console

from samtune import console


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """Both consoles write here, as to a file."""
    text = StringIO()
    plain = Console(file=text, highlight=False, soft_wrap=True, force_terminal=False)
    monkeypatch.setattr(console, "OUT", plain)
    monkeypatch.setattr(console, "ERR", plain)
    return text


def test_a_table_shows_text_as_it_is(terminal: StringIO) -> None:
    console.print_table([("[red]a[/red]", 0.5), ("b", 3)], columns=("name", "n"), title="numbers")
    assert [line.split() for line in terminal.getvalue().splitlines()] == [
        ["numbers"],
        ["name", "n"],
        ["[red]a[/red]", "0.5000"],
        ["b", "3"],
    ]


def test_a_table_in_a_pipe_is_not_wrapped(terminal: StringIO) -> None:
    console.print_table([("sha256", "0" * 200)], columns=("key", "value"))
    assert terminal.getvalue().splitlines()[1].split() == ["sha256", "0" * 200]


def test_an_error_is_not_wrapped_or_interpreted(terminal: StringIO) -> None:
    text = "[bold]x[/bold] " + "long " * 60
    console.print_error(text, hint="do this")
    assert terminal.getvalue() == f"error: {text}\ndo this\n"


def test_progress_without_a_terminal_is_few_plain_lines(terminal: StringIO) -> None:
    with console.progress("score", 500) as advance:
        for _ in range(500):
            advance(loss=0.25, lr=1e-3)
    assert terminal.getvalue().startswith("score  500/500  loss 0.25  lr 0.001  in ")
    assert terminal.getvalue().count("\n") == 1


def test_progress_tells_the_time_left(terminal: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 5.0, 20.0, 40.0])
    monkeypatch.setattr("samtune.console.time.monotonic", lambda: next(seconds))
    with console.progress("train", 4) as advance:
        advance()
        advance()
        advance(2)
    assert terminal.getvalue().splitlines() == ["train  2/4  20 s left", "train  4/4  in 40.0 s"]


def test_progress_in_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = StringIO()
    monkeypatch.setattr(console, "ERR", Console(file=text, force_terminal=True, width=120))
    with console.progress("train [x]", 3) as advance:
        advance(3, loss=0.5)
    assert "train [x]" in text.getvalue()
    assert "loss 0.5" in text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_cuts_the_values_not_the_bar_or_the_time(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = StringIO()
    monkeypatch.setattr(console, "ERR", Console(file=text, force_terminal=True, width=width, color_system=None))
    with console.progress("train", 450) as advance:
        advance(225, epoch="12", loss=0.5512, val_mDice="0.8123", lr=0.00092, images_per_s=12.31)
    (line,) = (shown for shown in re.split(r"\r|\n|\x1b\[2K", text.getvalue()) if "225/450" in shown)
    bar, done = line.find("━"), line.find("225/450")
    assert 0 <= bar < done < line.find(":") < line.find("epoch 12"), line
    assert ("images_per_s" in line) == (width == 200)
    assert len(line) <= width


def test_the_log_names_warnings_and_hides_debug(terminal: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("samtune")
    monkeypatch.setattr(logger, "propagate", True)  # undone after the test, like the handlers and the level
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    console.setup_logging()
    long = "loaded 314/314 " * 10
    logging.getLogger("samtune.models").info(long)
    logging.getLogger("samtune.data").warning("one image is black")
    logging.getLogger("samtune.data").debug("unseen")
    assert terminal.getvalue() == f"{long}\nwarning: one image is black\n"
