"""The commands for many runs: run a sweep, and put runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from samtune import console
from samtune.base.disk import disk_errors, write_json
from samtune.base.paths import find_path

sweep_app = Typer()


@sweep_app.command(rich_help_panel="Train")
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
) -> None:
    """Run methods on tasks, choose their hyper-parameters, and print the table; goes on where it stopped."""
    from samtune.compare.compare import compare as compare_runs
    from samtune.sweep.run import run_sweep
    from samtune.sweep.settings import load_sweep

    given = {"dir": out, "jobs": jobs}
    wanted = load_sweep(config, settings or ())
    wanted = wanted.model_copy(update={name: value for name, value in given.items() if value is not None})
    result = run_sweep(wanted, engine=engine, address=address)
    if result.failed:
        lines = [f"{name}: {failure.error} ({failure.log})" for name, failure in result.failed.items()]
        console.print_error("\n".join([f"{len(lines)} cell(s) failed; the same command runs them again:", *lines]))
    if result.finished:
        console.print_line(compare_runs([result.folder]).to_markdown())
    console.print_line(f"\n{result.folder}")
    if result.failed:
        raise Exit(1)


@sweep_app.command(rich_help_panel="Train")
def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders, or folders of sweeps.")],
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Also write the numbers here.")] = None,
    figures: Annotated[Path | None, Option(metavar="DIR", help="Also draw costs, few shots, features.")] = None,
    paper: Annotated[
        str | None, Option(metavar="vtab|fgvc", help="Also list what papers published, below a sweep's rows.")
    ] = None,
) -> None:
    """Print runs side by side, in Markdown: results with intervals, parameters, cost."""
    from samtune.compare.compare import compare as compare_runs

    comparison = compare_runs([find_path(run) for run in runs], paper=paper)
    if json_file is not None:
        write_json(json_file, comparison.to_json())
    console.print_line(comparison.to_markdown())
    if figures is not None:
        from samtune.compare.figures import save_figures

        with disk_errors(figures):
            saved = save_figures(comparison.methods, figures)
        console.print_line("\n" + "\n".join(str(path) for path in saved))
