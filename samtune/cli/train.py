"""The commands that train: the whole job of a config, or its selection alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from samtune import console
from samtune.base.paths import find_path
from samtune.errors import ConfigError

train_app = Typer()

ConfigFile = Annotated[Path, Option("--config", metavar="FILE", help="YAML file; also looked up in configs/.")]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the config, such as train.lr=1e-4.")
]
RunDir = Annotated[Path | None, Option(metavar="DIR", help="The run folder itself, instead of runs/NAME/TIME.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Empty the run folder if it was used before.")]


@train_app.command(rich_help_panel="Train")
def finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Two steps; estimate time and memory.")] = False,
    print_config: Annotated[bool, Option("--print-config", help="Print all settings and stop.")] = False,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
) -> None:
    """Score, select, train, merge, audit, evaluate: the whole job of a config."""
    from samtune.run.settings import load_config

    settings = load_config(config, overrides or ())
    if print_config:
        console.print_line(settings.to_yaml().rstrip())
        return
    from samtune.run import recipe

    if dry_run:
        console.print_line(str(recipe.dry_run(settings)))
        return
    result = recipe.finetune(settings, run_dir=run_dir, overwrite=overwrite, command=_command_line())
    console.show(result.report.to_table(result.before))
    console.print_line(f"\n{result.run_dir}")


@train_app.command(rich_help_panel="Train")
def select(
    config: ConfigFile,
    overrides: Overrides = None,
    report: Annotated[
        bool, Option("--report", help="Also a page: where it selects, what is noise, what is stable.")
    ] = False,
    against: Annotated[
        Path | None, Option(metavar="FILE", help="A selection.safetensors to compare with, in the report.")
    ] = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
) -> None:
    """Score and select only, and write the selection."""
    if against is not None and not report:
        raise ConfigError("--against compares in the report; add --report.")
    from samtune.run.settings import load_config

    settings = load_config(config, overrides or ())
    from samtune.run import recipe

    other = None if against is None else find_path(against)
    folder = recipe.select_only(settings, run_dir=run_dir, overwrite=overwrite, report=report, against=other)
    console.print_line(str(folder))


def _command_line() -> str:
    """Returns what was typed, without the run folder: it is used now, and repeating `--overwrite` would empty it."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "samtune")  # of python -m samtune
    start = ["python", f"scripts/{program}"] if program.endswith(".py") else [program]
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        if argument == "--run-dir":
            next(arguments, None)
        elif argument != "--overwrite" and not argument.startswith("--run-dir="):
            kept.append(argument)
    return shlex.join([*start, *kept])
