"""The commands that look into files, convert them, and check or fetch data sets."""

import logging
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from samtune import console
from samtune.base.paths import find_path
from samtune.errors import ConfigError, DataError

logger = logging.getLogger("samtune.cli.files")
files_app = Typer()
data_app = Typer(help="Check and fetch data sets.", no_args_is_help=True)

Base = Annotated[str, Argument(help="Weights of the base model, or the name of a model for its own.")]
OutFile = Annotated[Path, Option("--out", metavar="FILE", help="The file to write.")]


@files_app.command(rich_help_panel="Files")
def apply(
    base: Base, delta: Annotated[Path, Option(metavar="FILE", help="The delta.safetensors of a run.")], out: OutFile
) -> None:
    """Base + delta = merged model."""
    from samtune.files.delta import apply_delta

    apply_delta(_base(base), find_path(delta), out)
    console.print_line(str(out))


@files_app.command(rich_help_panel="Files")
def undo(
    merged: Annotated[Path, Argument(help="A merged model.")],
    delta: Annotated[Path, Option(metavar="FILE", help="The delta.safetensors of its run.")],
    out: OutFile,
) -> None:
    """Merged model - delta = base, bit for bit."""
    from samtune.files.delta import undo_delta
    from samtune.files.find import find_model

    undo_delta(find_model(merged), find_path(delta), out)
    console.print_line(str(out))


@files_app.command(rich_help_panel="Files")
def export(
    merged: Annotated[Path, Argument(help="A merged model.")],
    out: OutFile,
    format: Annotated[
        str,
        Option(
            metavar="pth|transformers",
            help="pth: loads in segment-anything's registry, or in timm; transformers: a folder for from_pretrained.",
        ),
    ] = "pth",
) -> None:
    """Write a merged model for other programs."""
    from samtune.files.export.folder import export_folder
    from samtune.files.export.pth import export_pth
    from samtune.files.find import find_model
    from samtune.tasks.table import describe_file

    writers = {"pth": export_pth, "transformers": export_folder}
    if format not in writers:
        raise ConfigError(f"--format {format!r} is unknown. Known: {', '.join(writers)}.")
    file = find_model(merged)
    writers[format](file, out)
    if text := describe_file(file).input_text():
        logger.info("%s", text)
    console.print_line(str(out))


@files_app.command(rich_help_panel="Files")
def inspect(file: Annotated[str, Argument(help="A model, selection or delta, or the name of a model.")]) -> None:
    """Show what a file is and where it came from."""
    from samtune.files.audit import inspect_file

    console.print_table(list(inspect_file(_base(file)).items()), columns=("key", "value"), numbers=2)


@files_app.command(rich_help_panel="Files")
def diff(
    a: Annotated[str, Argument(help="A model file, or the name of a model for its own weights.")],
    b: Annotated[str, Argument(help="Another one.")],
) -> None:
    """Count the entries in which two models differ, per tensor."""
    from samtune.files.audit import diff_files

    rows = [(row.name, row.changed, row.total, f"{row.max_abs:.3g}") for row in diff_files(_base(a), _base(b))]
    if not rows:
        console.print_line("no differences")
        return
    rows.append(("all of these", sum(int(r[1]) for r in rows), sum(int(r[2]) for r in rows), ""))
    console.print_table(rows, columns=("tensor", "changed", "of", "largest change"))


@files_app.command(rich_help_panel="Files")
def audit(
    base: Base,
    merged: Annotated[Path, Argument(help="The merged model.")],
    selection: Annotated[Path, Argument(help="The selection.safetensors of its run.")],
) -> None:
    """Check that only selected entries differ from the base."""
    from samtune.files.audit import audit_files
    from samtune.files.find import find_model

    report = audit_files(_base(base), find_model(merged), find_path(selection))
    for line in report.lines:
        console.print_line(line)
    if not report.ok:
        raise Exit(4)


def _base(text: str) -> str | Path:
    """Returns the file that `find_model` finds, else the text: the name of a model, or a mistake to explain."""
    from samtune.files.find import find_model

    path = find_model(text)
    return path if path.exists() or path.is_symlink() else text


@data_app.command()
def verify(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder with images/ and masks/, or with classes.")],
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="Data set in it, such as vtab/cifar or fgvc/cub.")
    ] = None,
) -> None:
    """Read every image, and list all problems at once."""
    from samtune.tasks.table import task_of_data

    place = find_path(folder)
    report = task_of_data(place, name).verify(place, name=name)
    for warning in report.summary():
        console.print_line(f"warning: {warning}")
    if report.errors:
        raise DataError("\n".join([f"{folder} has {len(report.errors)} problem(s):", *report.errors]))
    console.print_line(f"{folder}: no errors, {len(report.warnings)} warning(s)")


@data_app.command()
def fetch(
    name: Annotated[str, Argument(help="Name of the data set, such as kvasir-seg or digits.")],
    dir: Annotated[Path | None, Option(metavar="DIR", help="Where to put it; data/NAME if not given.")] = None,
) -> None:
    """Get a data set: download it, or write one that is bundled."""
    from samtune.data.fetch import fetch as fetch_data

    console.print_line(str(fetch_data(name, dir or Path("data") / name)))


@data_app.command("import")
def import_(
    name: Annotated[
        str, Argument(help="Of annotations coco, yolo, labelme, label-studio, cvat, voc or index; or cifar-100.")
    ],
    source: Annotated[Path, Argument(metavar="SRC", help="Its archive or file, or the folder it was unpacked to.")],
    out: Annotated[Path, Option("--out", metavar="DIR", help="Gets class folders, or images/ and masks/.")],
    classes: Annotated[
        bool, Option("--classes", help="Of annotations: maps of class numbers and labels.txt, not binary masks.")
    ] = False,
    category: Annotated[
        list[str] | None, Option(metavar="NAME", help="Of annotations: one that counts; repeat for more.")
    ] = None,
) -> None:
    """Turn a data set of another format into a folder that samtune reads."""
    from samtune.data.importing import import_data

    chosen = tuple(category) if category else None
    console.print_line(str(import_data(name, find_path(source), out, classes=classes, categories=chosen)))
