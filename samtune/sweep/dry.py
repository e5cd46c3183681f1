"""What would a sweep run? A table of its plan; nothing is written."""

from collections.abc import Sequence

from samtune.config.sections import Train
from samtune.console import Table
from samtune.sweep.plan import Cell, first_values, plan, plan_grid
from samtune.sweep.run import check_rows
from samtune.sweep.settings import Sweep
from samtune.sweep.trial import is_finished, result_file


def planned(sweep: Sweep) -> Table:
    """Counts the runs of a sweep by row: of its grid and of its table, the finished ones, and the steps to go.

    Raises:
        ConfigError: a wrong setting in any row or task.
        RunFolderError: a run was made with other settings.
    """
    grid, table = plan_grid(sweep), plan(sweep, first_values(sweep))
    check_rows(table)
    rows = [_row(sweep.cells[name].title, *_of(name, grid, table)) for name in sweep.cells]
    rows.append(_row("all", grid, table))
    columns = ("", "grid", "finished", "table", "finished", "to go")
    notes = [f"in {sweep.folder}; a row of a grid may get {sweep.grid_extend} more where its best value is at the end"]
    return Table(columns, rows, f"{sweep.name}: {len(grid) + len(table)} runs, {sweep.jobs} at once", notes)


def _of(row: str, *parts: Sequence[Cell]) -> list[list[Cell]]:
    return [[cell for cell in part if cell.row == row] for part in parts]


def _row(title: str, grid: Sequence[Cell], table: Sequence[Cell]) -> list[object]:
    # the values that the table's runs had are of the grid's choice, which is not made here
    done = [[cell for cell in grid if is_finished(cell)], [cell for cell in table if result_file(cell).is_file()]]
    left = [cell.config.train for cell in (*grid, *table) if cell not in done[0] and cell not in done[1]]
    return [title, len(grid), len(done[0]), len(table), len(done[1]), _length(left)]


def _length(runs: Sequence[Train]) -> str:
    """Words the length of runs: in steps where they are given, else in epochs, whose steps the data decide."""
    steps = sum(run.steps for run in runs if run.steps is not None)
    epochs = sum(run.epochs for run in runs if run.steps is None)
    parts = [f"{steps:,} steps"] * (steps > 0) + [f"{epochs:,} epochs"] * (epochs > 0)
    return " and ".join(parts) or "nothing"
