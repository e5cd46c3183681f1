"""The command line: parse, one call into the package, print the result, return an exit code.

Whatever a command needs is imported when it runs, so that `samtune --help` is quick.
"""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from samtune import console
from samtune.base import environment
from samtune.base.paths import find_path
from samtune.cli.errors import explain
from samtune.cli.files import data_app, files_app
from samtune.cli.sweep import sweep_app
from samtune.errors import ConfigError

if TYPE_CHECKING:
    from samtune.config.load import Config

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
_TRAIN, _USE = "Train", "Use a checkpoint"

ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="YAML file; also looked up in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the config, such as train.lr=1e-4."),
]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder itself, instead of runs/NAME/TIME.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the run folder if it was used before.")]
Checkpoint = Annotated[Path, typer.Option(metavar="FILE", help="A merged.safetensors of a run.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may also follow the command.")] = False,
) -> None:
    console.setup_logging(debug=debug)


@app.command(rich_help_panel=_TRAIN)
def finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps; estimate time and memory.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings and stop.")] = False,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
) -> None:
    """Score, select, train, merge, audit, evaluate: the whole job of a config."""
    settings = _load(config, overrides)
    if print_config:
        console.print_line(settings.to_yaml().rstrip())
        return
    from samtune.run import recipe

    if dry_run:
        console.print_line(str(recipe.dry_run(settings)))
        return
    result = recipe.finetune(settings, run_dir=run_dir, overwrite=overwrite, command=_command_line())
    console.print_report(result.report, before=result.before)
    console.print_line(f"\n{result.run_dir}")


@app.command(rich_help_panel=_TRAIN)
def select(
    config: ConfigFile,
    overrides: Overrides = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also a page: where it selects, what is noise, what is stable.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A selection.safetensors to compare with, in the report.")
    ] = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
) -> None:
    """Score and select only, and write the selection."""
    if against is not None and not report:
        raise ConfigError("--against compares in the report; add --report.")
    settings = _load(config, overrides)
    from samtune.run import recipe

    other = None if against is None else find_path(against)
    folder = recipe.select_only(settings, run_dir=run_dir, overwrite=overwrite, report=report, against=other)
    console.print_line(str(folder))


@app.command(rich_help_panel=_USE)
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with images/ and masks/, or with class folders.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write metrics.json and per_image.csv here.")] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="auto|all|train|val|test",
            help="Part to measure; auto: test if there is one, or all. For classes, `all` is no part.",
        ),
    ] = "auto",
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further metric of masks, such as hd95; repeat for more."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Classes: the data set, such as vtab/cifar or imagenet-c.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint: mDice and mIoU, or accuracy, with 95 % intervals."""
    _check_choice("split", split, ("auto", "all", "train", "val", "test"))
    _check_device(device)
    from samtune.files.merged import read_task

    file, folder = find_path(checkpoint), find_path(data)
    if read_task(file) == "classification":
        _evaluate_classes(file, folder, out=out, device=device, split=split, name=name, metrics=metrics)
    else:
        from samtune.tasks.masks.evaluate_file import evaluate_checkpoint

        if name is not None:
            raise ConfigError(f"--name {name!r} is for classification; {checkpoint} segments.")
        report = evaluate_checkpoint(file, folder, out=out, device=device, split=split, metrics=tuple(metrics or ()))
        console.print_report(report)
    if out is not None:
        console.print_line(f"\n{out}")


@app.command(rich_help_panel=_USE)
def predict(
    checkpoint: Checkpoint,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where STEM.png masks (0, 255) or predictions.csv go.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw each mask over its image.")] = False,
    box: Annotated[
        str | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Prompt: a box in pixels of the image.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="Prompt: a point on the object; repeat for more.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write the mask of each image, at its own size, or its class."""
    _check_device(device)
    from samtune.files.merged import read_task

    if read_task(find_path(checkpoint)) == "classification":
        if overlay or box is not None or point:
            raise ConfigError(f"--overlay, --box and --point are for masks; {checkpoint} is a classifier.")
        from samtune.tasks.classes.predict import ClassPredictor, predict_class_files

        classifier = ClassPredictor.from_file(find_path(checkpoint), device=device)
        table = predict_class_files(classifier, paths, out)
        console.print_line(f"{len(table)} classes in {out / 'predictions.csv'}")
        return
    box_xyxy = _numbers("--box", box, 4) if box is not None else None
    points_xy = [_numbers("--point", text, 2) for text in point or ()]
    from samtune.tasks.masks.predict import Predictor, predict_files

    predictor = Predictor.from_file(find_path(checkpoint), device=device)
    masks = predict_files(predictor, paths, out, overlay=overlay, box_xyxy=box_xyxy, points_xy=points_xy or None)
    console.print_line(f"{len(masks)} masks in {out}")


@app.command(rich_help_panel=_USE)
def serve(
    checkpoint: Checkpoint,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    device: Device = "auto",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without an API key (SAMTUNE_API_KEY).")
    ] = False,
) -> None:
    """Answer HTTP requests: POST an image, get its mask."""
    _check_device(device)
    from samtune.serve import run_server

    signal.signal(signal.SIGTERM, _exit_0)  # asked to stop, the server drains and that is success
    run_server(find_path(checkpoint), host=host, port=port, device=device, insecure=insecure)


app.add_typer(sweep_app)  # without a name: its commands are on the top level
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
    signal.signal(signal.SIGTERM, _exit_143)
    try:
        typer.main.get_command(app).main(arguments, prog_name="samtune")
    except Exception as error:
        if debug:
            console.print_traceback(traceback.format_exc())
        code, message, hint = explain(error)
        console.print_error(message, hint=None if debug else hint)
        sys.exit(code)
    sys.exit(0)


def _exit_143(*_: object) -> NoReturn:
    sys.exit(143)


def _exit_0(*_: object) -> NoReturn:
    sys.exit(0)


def _evaluate_classes(
    checkpoint: Path,
    folder: Path,
    *,
    out: Path | None,
    device: str,
    split: str,
    name: str | None,
    metrics: list[str] | None,
) -> None:
    if metrics:
        raise ConfigError(f"--metrics {metrics[0]!r} is of masks; all metrics of a classifier are shown anyway.")
    from samtune.tasks.classes.evaluate_file import evaluate_classifier, evaluate_corruptions

    if name == "imagenet-c":
        table = evaluate_corruptions(checkpoint, folder, out=out, device=device)
        rows = [(kind, *errors, table.corruption_errors[kind]) for kind, errors in table.errors.items()]
        columns = ("corruption", *(f"error {severity}" for severity in range(1, 6)), "CE")
        console.print_table(rows, columns=columns, title=f"mCE {table.mean_corruption_error:.2f} % (AlexNet = 100 %)")
        return
    console.print_report(evaluate_classifier(checkpoint, folder, out=out, device=device, split=split, name=name))


def _load(config: Path, overrides: list[str] | None) -> Config:
    from samtune.config.load import load_config

    return load_config(config, overrides or ())


def _command_line() -> str:
    """Returns what was typed, without the run folder: it is used now, and repeating `--overwrite` would empty it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":  # python -m samtune
        program = Path("samtune")
    start = ["python", f"scripts/{program.name}"] if program.suffix == ".py" else [program.name]
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        if argument == "--run-dir":
            next(arguments, None)
        elif argument != "--overwrite" and not argument.startswith("--run-dir="):
            kept.append(argument)
    return shlex.join([*start, *kept])


def _check_choice(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{option} {value!r} is unknown. Known: {', '.join(allowed)}.")


def _check_device(device: str) -> None:
    _check_choice("device", device, ("auto", "cpu", "cuda", "mps"))


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise ConfigError(f"{option} {text!r}: expected {count} numbers with commas between them, in pixels.")
    return values
