"""The commands that train: the whole job of a config, its selection alone, or many; and put runs side by side."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from samtune import console
from samtune.base.disk import disk_errors, write_json
from samtune.base.paths import find_path
from samtune.errors import ConfigError, RunFolderError

train_app = Typer()

ConfigFile = Annotated[Path, Option("--config", metavar="FILE", help="YAML file; also looked up in configs/.")]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="Changes to the config, such as train.lr=1e-4.")
]
RunDir = Annotated[Path | None, Option(metavar="DIR", help="The run folder itself, instead of runs/NAME/TIME.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Empty the run folder if it was used before.")]


@train_app.command(rich_help_panel="Train")
def finetune(
    config: Annotated[
        Path | None, Option("--config", metavar="FILE", help="YAML file; also looked up in configs/.")
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Two steps; estimate time and memory.")] = False,
    print_config: Annotated[bool, Option("--print-config", help="Print all settings and stop.")] = False,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        str | None,
        Option(
            metavar="DIR|auto",
            help="Go on with the run of this folder; auto: with --run-dir or the newest unfinished one, else anew.",
        ),
    ] = None,
    devices: Annotated[int, Option(min=1, help="GPUs, or processes on the CPU, that train together.")] = 1,
) -> None:
    """Score, select, train, merge, audit, evaluate: the whole job of a config."""
    from samtune.base.launch import is_rank

    if devices > 1 and not (is_rank() or dry_run or print_config):
        raise Exit(_launch(devices))
    from samtune.run.checkpoints.resume import find_run
    from samtune.run.settings import load_config

    _check_places(config, run_dir, resume, overwrite=overwrite)
    folder = None if resume in (None, "auto") else find_path(str(resume))
    settings = load_config(config or folder / "config.yaml", overrides or ())  # type: ignore[operator]
    if resume == "auto":
        folder = find_run(settings, run_dir)
        # what a run left there that hardly began
        overwrite = folder is None and run_dir is not None and not (run_dir / "config.yaml").exists()
        run_dir = run_dir if folder is None else None
    if print_config:
        console.print_line(settings.to_yaml().rstrip())
        return
    if dry_run:
        from samtune.run import dry

        console.print_line(str(dry.dry_run(settings)))
        return
    from samtune.run import recipe

    result = recipe.finetune(settings, run_dir=run_dir, overwrite=overwrite, resume=folder, command=_command_line())
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


@train_app.command(rich_help_panel="Train")
def sweep(
    config: Annotated[Path, Option("--config", metavar="FILE", help="Sweep file, such as those of configs/.")],
    settings: Annotated[
        list[str] | None,
        Argument(metavar="KEY=VALUE", help="Changes: to the sweep (steps=50), or to all runs (data.dir=DIR)."),
    ] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Where it goes; runs/sweeps/NAME if not given.")] = None,
    jobs: Annotated[int | None, Option(min=1, help="Runs at once; each gets its share of the cores.")] = None,
    engine: Annotated[str, Option(metavar="local|ray", help="What hands out the runs; ray is an extra.")] = "local",
    address: Annotated[
        str | None,
        Option(metavar="HOST:PORT", help="A Ray cluster, all of whose machines share the working folder and --out."),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only list what would run; nothing is written.")] = False,
) -> None:
    """Run methods on tasks, choose their hyper-parameters, and print the table; goes on where it stopped."""
    from samtune.compare.compare import compare as compare_runs
    from samtune.sweep.run import run_sweep
    from samtune.sweep.settings import load_sweep

    given = {"dir": out, "jobs": jobs}
    wanted = load_sweep(config, settings or ())
    wanted = wanted.model_copy(update={name: value for name, value in given.items() if value is not None})
    if dry_run:
        from samtune.sweep.dry import planned

        console.show(planned(wanted))
        return
    result = run_sweep(wanted, engine=engine, address=address)
    if result.failed:
        lines = [f"{name}: {failure.error} ({failure.log})" for name, failure in result.failed.items()]
        console.print_error("\n".join([f"{len(lines)} cell(s) failed; the same command runs them again:", *lines]))
    if result.finished:
        console.print_line(compare_runs([result.folder]).to_markdown())
    console.print_line(f"\n{result.folder}")
    if result.failed:
        raise Exit(1)


@train_app.command(rich_help_panel="Train")
def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders, or folders of sweeps.")],
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Also write the numbers here.")] = None,
    figures: Annotated[
        Path | None, Option(metavar="DIR", help="Also draw effects, costs, few shots, features.")
    ] = None,
    report: Annotated[
        Path | None, Option(metavar="FILE.html", help="Also write one page: tables, effects, images, cost.")
    ] = None,
    against: Annotated[
        str | None, Option(metavar="ROW", help="Test all rows against this: its short name, title or run folder.")
    ] = None,
    paper: Annotated[
        str | None, Option(metavar="vtab|fgvc", help="Also list what papers published, below a sweep's rows.")
    ] = None,
) -> None:
    """Print runs side by side, in Markdown: results with intervals, differences, parameters, cost."""
    from samtune.compare.compare import compare as compare_runs

    comparison = compare_runs([find_path(run) for run in runs], paper=paper, against=against)
    if json_file is not None:
        write_json(json_file, comparison.to_json())
    console.print_line(comparison.to_markdown())
    if figures is not None:
        from samtune.compare.figures import save_figures

        with disk_errors(figures):
            saved = save_figures(comparison, figures)
        console.print_line("\n" + "\n".join(str(path) for path in saved))
    if report is not None:
        from samtune.compare.report import save_report

        save_report(report, comparison, command=_command_line())
        console.print_line(f"\n{report}")


def _launch(devices: int) -> int:
    """Runs this command in several processes, and returns their exit code."""
    from samtune.base.launch import launch
    from samtune.base.machine import cores

    program, *arguments = sys.argv
    start = ["-m", "samtune"] if program.endswith("__main__.py") else [program]
    return launch([sys.executable, *start, *arguments], devices, threads=max(1, cores() // devices))


def _check_places(config: Path | None, run_dir: Path | None, resume: str | None, *, overwrite: bool) -> None:
    """Refuses options on where a run goes that don't go together."""
    if resume is not None and overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite empties it: give one of them.")
    if config is None and resume in (None, "auto"):
        raise ConfigError("no --config. Give one, such as polyp.yaml; only --resume DIR finds it in the run's folder.")
    if run_dir is not None and resume not in (None, "auto"):
        raise ConfigError(f"--resume {resume} names the run folder already: leave --run-dir out.")
    if resume not in (None, "auto") and not (find_path(str(resume)) / "config.yaml").is_file():
        raise RunFolderError(f"--resume {resume}: that is no folder of a run (there is no config.yaml in it).")


@train_app.command(rich_help_panel="Train")
def sync(runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders, or folders of sweeps.")]) -> None:
    """Tell MLflow what it lacks of runs that have ended; twice is as good as once."""
    from samtune.base.tracking.sync import sync as sync_run
    from samtune.sweep.sync import is_sweep, sync_sweep

    for run in runs:
        place = find_path(run)
        for folder, told in sync_sweep(place) if is_sweep(place) else [(place, sync_run(place))]:
            some = told.numbers or told.files
            what = f"{told.numbers} numbers and {told.files} files told" if some else "nothing to tell"
            console.print_line(f"{run / folder.relative_to(place)}: {what}; {told.status}, run {told.run_id}")


def _command_line() -> str:
    """Returns what was typed, without what says where: the folder is used now, and `--overwrite` would empty it."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "samtune")  # of python -m samtune
    start = ["python", f"scripts/{program}"] if program.endswith(".py") else [program]
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        if argument in ("--run-dir", "--resume"):
            next(arguments, None)
        elif argument != "--overwrite" and not argument.startswith(("--run-dir=", "--resume=")):
            kept.append(argument)
    return shlex.join([*start, *kept])
