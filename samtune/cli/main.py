"""The command line: parse, one call into the package, print the result, return an exit code.

Whatever a command needs is imported when it runs, so that `samtune --help` is quick.
"""

import errno
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, NoReturn

from typer import Exit, Option, Typer
from typer.main import get_command

from samtune import console
from samtune.base import environment
from samtune.base.launch import end_with_parent, is_rank
from samtune.base.signals import end_by_signals
from samtune.cli.files import data_app, files_app
from samtune.cli.start import start_app
from samtune.cli.train import train_app
from samtune.cli.use import use_app
from samtune.errors import SamtuneError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

app = Typer(
    name="samtune",
    help="Adapts Segment Anything, ViT, Swin, ConvNeXt and EfficientNet to your images by tuning a small, well-chosen "
    "part of their own parameters.",
    epilog="Exit codes: 0 ok, 1 bug, 2 config, 3 data, 4 checkpoint, 5 non-finite, 6 memory, 7 disk, "
    "8 run folder in use, 129/130/143 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"samtune {metadata.version('samtune')}")
        raise Exit


@app.callback()
def _root(
    debug: Annotated[bool, Option("--debug", help="Show tracebacks; may also follow the command.")] = False,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    console.setup_logging(debug=debug)


app.add_typer(start_app)  # without a name: its commands are on the top level
app.add_typer(train_app)
app.add_typer(use_app)
app.add_typer(files_app)
app.add_typer(data_app, name="data", rich_help_panel="Files")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code; `argv` starts after the program's name, None: as it was called."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [a for a in arguments if a != "--debug"]
    environment.set_defaults()
    end_by_signals()
    if is_rank():
        end_with_parent()
    try:
        get_command(app).main(arguments, prog_name="samtune")
    except Exception as error:
        if debug:
            console.print_traceback(traceback.format_exc())
        code, message, hint = explain(error)
        console.print_error(message, hint=None if debug else hint)
        sys.exit(code)
    sys.exit(0)


def explain(error: Exception) -> tuple[int, str, str | None]:
    """Returns exit code (see `samtune.errors`), message and perhaps a hint for an error that ended a command."""
    if isinstance(error, SamtuneError):
        return error.exit_code, str(error), None
    if _is_out_of_memory(error):
        return (6, f"out of memory: {error}", "Lower train.batch (and raise train.accumulate), or model.image_size.")
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        told = f"a process that reads images was killed, most often for lack of memory: {error}"
        return 6, told, "Lower data.workers or train.batch; a run goes on by --resume."
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" {error.filename}" if error.filename else ""
        return 7, f"can't write or read{where}: {error.strerror}", "Free some space, or name another folder."
    bug = "This is a bug in samtune. Please report it with the command and what --debug shows."
    return 1, f"{type(error).__name__}: {error}", bug


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # an error of torch's can't come from a torch that was not imported
        return isinstance(error, MemoryError)
    from samtune.base.machine import is_out_of_memory

    return is_out_of_memory(error)
