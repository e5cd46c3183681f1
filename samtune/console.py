"""What the terminal shows: results on stdout; messages, progress and errors on stderr.

A terminal gets colours and moving bars; a file or a pipe gets plain lines.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from rich import table as rich_table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Terminal(Console):
    """A reader that has gone away takes no more lines, and must not end a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # or the interpreter complains when it flushes at its end
        os.close(nowhere)


OUT = _Terminal(highlight=False, soft_wrap=True)
ERR = _Terminal(highlight=False, soft_wrap=True, stderr=True)

BAR, WIDE = 40, 120  # columns of a bar, in a terminal of that many
LINE_SECONDS = 10.0
"""How often a progress line is printed where there is no terminal."""


@dataclass(frozen=True)
class Table:
    """A table for the terminal: floats get 4 digits after the point; `title` is a line above, `notes` are below."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str | None = None
    notes: Sequence[str] = ()


class Advance(Protocol):
    """Tells a progress bar that `steps` more are done, with values such as loss=0.31 to show."""

    def __call__(self, steps: int = 1, **values: float | str) -> None: ...


def set_quiet(quiet: bool) -> None:
    """Keeps results, progress and warnings of this process to itself: another one of the same run shows them."""
    OUT.quiet = quiet
    if quiet:
        logging.getLogger("samtune").setLevel(logging.ERROR)


def setup_logging(*, debug: bool = False) -> None:
    """Sends the package's log to stderr."""
    logger = logging.getLogger("samtune")
    logger.handlers = [_Handler()]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


class _Handler(logging.Handler):
    """Prints records above a progress bar; marks warnings by a word, because colour does not survive a pipe."""

    def emit(self, record: logging.LogRecord) -> None:
        level = {logging.WARNING: ("warning: ", "yellow"), logging.ERROR: ("error: ", "red")}
        word, style = level.get(record.levelno, ("", ""))
        try:
            ERR.print(Text.assemble((word, style), self.format(record)))
        except Exception:  # as every handler does: a broken pipe must not end a training
            self.handleError(record)


def print_line(text: str) -> None:
    """Prints one result to stdout as it is."""
    OUT.print(Text(text))


def print_traceback(text: str) -> None:
    """Prints the text of a traceback to stderr as it is."""
    ERR.print(Text(text.rstrip()))


def print_error(text: str, *, hint: str | None = None) -> None:
    """Prints what was wrong to stderr, and in a second, dimmer paragraph what to do about it."""
    ERR.print(Text.assemble(("error: ", "bold red"), text))
    if hint:
        ERR.print(Text(hint, style="dim"))


def print_table(
    rows: Sequence[Sequence[object]], *, columns: Sequence[str], title: str | None = None, numbers: int = 1
) -> None:
    """Prints a table to stdout; the columns from `numbers` on (counted from 0) are aligned to the right."""
    table = rich_table.Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index >= numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(f"{cell:.4f}" if isinstance(cell, float) else str(cell)) for cell in row])
    if not OUT.is_terminal:
        OUT.width = 10_000  # a pipe has no edge to wrap at
    OUT.print(table)


def show(table: Table) -> None:
    """Prints a table with its notes to stdout."""
    print_table(table.rows, columns=table.columns, title=table.title)
    for note in table.notes:
        OUT.print(Text(note, style="dim"))


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Shows how far a job is, by the function that it yields: a bar with values and remaining time, or plain lines."""
    shown = nullcontext(_nothing) if OUT.quiet else _bar(title, total) if ERR.is_terminal else _lines(title, total)
    with shown as advance:
        yield advance


def _nothing(steps: int = 1, **values: float | str) -> None:
    """Shows nothing."""


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    whole, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=BAR if ERR.width >= WIDE else BAR // 3, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("{task.fields[values]}", style="dim", markup=False, table_column=cut),  # what gives way
    )
    with Progress(*columns, console=ERR, transient=True, expand=True) as bar:
        task = bar.add_task(title, total=total, values="")

        def advance(steps: int = 1, **values: float | str) -> None:
            bar.update(task, advance=steps, values=_values(values))

        yield advance


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    start = shown = time.monotonic()
    done = 0

    def advance(steps: int = 1, **values: float | str) -> None:
        nonlocal done, shown
        done += steps
        now = time.monotonic()
        if now - shown < LINE_SECONDS and done < total:
            return
        shown = now
        left = (now - start) / done * (total - done)
        ending = f"{left:.0f} s left" if done < total else f"in {now - start:.1f} s"
        ERR.print(Text("  ".join(part for part in (title, f"{done}/{total}", _values(values), ending) if part)))

    yield advance


def _values(values: Mapping[str, float | str]) -> str:
    return "  ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items())
