"""The command line: parse, one call into the package, print the result, return an exit code.

Whatever a command needs is imported when it runs, so that `samtune --help` is quick.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from samtune import console
from samtune.base import environment
from samtune.cli.errors import exit_143, explain
from samtune.cli.files import data_app, files_app
from samtune.cli.sweep import sweep_app
from samtune.cli.train import train_app
from samtune.cli.use import use_app

app = typer.Typer(
    name="samtune",
    help="Adapts Segment Anything, ViT, Swin and ConvNeXt to your images by tuning a small, well-chosen part of their "
    "own parameters.",
    epilog="Exit codes: 0 ok, 1 bug, 2 config, 3 data, 4 checkpoint, 5 non-finite, 6 memory, 7 disk, "
    "8 run folder in use, 130/143 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may also follow the command.")] = False,
) -> None:
    console.setup_logging(debug=debug)


app.add_typer(train_app)  # without a name: its commands are on the top level
app.add_typer(use_app)
app.add_typer(sweep_app)
app.add_typer(files_app)
app.add_typer(data_app, name="data", rich_help_panel="Files")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code.

    Args:
        argv: the arguments after the program's name; those of the process if None.

    Raises:
        SystemExit: always.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [a for a in arguments if a != "--debug"]
    environment.set_defaults()
    signal.signal(signal.SIGTERM, exit_143)
    try:
        typer.main.get_command(app).main(arguments, prog_name="samtune")
    except Exception as error:
        if debug:
            console.print_traceback(traceback.format_exc())
        code, message, hint = explain(error)
        console.print_error(message, hint=None if debug else hint)
        sys.exit(code)
    sys.exit(0)
