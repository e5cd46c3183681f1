"""The command to begin with: a config for a folder."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from samtune import console
from samtune.base.paths import find_path

start_app = Typer()


@start_app.command(rich_help_panel="Train")
def init(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder with your images and masks, or with classes.")],
    out: Annotated[
        Path | None, Option("--out", metavar="FILE", help="The config to write; DIR.yaml here if not given.")
    ] = None,
    task: Annotated[
        str | None, Option(metavar="TASK", help="What the data is, where that is unclear: segmentation, semantic, ...")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Look at a folder, and write a config that fits it, with a sheet of samples."""
    from samtune.starting.start import start
    from samtune.starting.summary import summary

    started = start(find_path(folder), out=out, task=task, overwrite=overwrite)
    for line in summary(started.found):
        console.print_line(line)
    console.print_line(f"\nsamples      {started.sheet}\nconfig       {started.config}")
    console.print_line(f"next         samtune finetune --config {started.config}")
