"""What does the page of a comparison show? Results, differences, the same images side by side, cost against gain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samtune.compare.charts import GAINS, SURE, draw_effects, draw_gain
from samtune.compare.compare import Compared
from samtune.compare.pictures import SameImage, same_images
from samtune.compare.tables import Grid, apart_grids, cost_grid, counts_grid
from samtune.report.page import Chart, Kind, Page, Picture, Section, Table, save_page

_WIDTH = 1040  # pixels: as wide as a page
_NO_ROW = (
    "Differences are to the first and to the best row, with 95 % intervals. `--against ROW` tests them against one."
)
_NO_PICTURES = (
    "There are none: no image has a picture of two rows. A run keeps pictures of its best, median and worst images in "
    "its folder `overlays`; runs made with `eval.overlays: 0` keep none."
)


def save_report(path: Path, comparison: Compared, *, command: str) -> None:
    """Writes the page of a comparison to an HTML file; `command` makes it again.

    Raises:
        DiskError: a picture can't be read or the file can't be written.
    """
    with_runs = [method for method in comparison.methods if method.runs]
    against = {"Against": comparison.against.title} if comparison.against else {}
    runs = [run for method in with_runs for run in method.runs]
    one = len({task for method in with_runs for task in method.rows}) == 1
    images = {"Images": f"{runs[0].report.n_images:,} {runs[0].report.split}"} if one else {}
    tables = [_table(grid) for grid in (comparison.results[0], *apart_grids(comparison.methods))]
    page = Page(
        kind="comparison",
        title=comparison.title,
        facts={"Rows": str(len(comparison.methods)), "Runs": str(len(runs)), **images, **against},
        cards=(),
        sections=[
            Section("Results", "" if comparison.against else _NO_ROW, tables=tables),
            *_differences(comparison),
            *_pictures(same_images(comparison.methods), next(iter(runs[0].metrics))),
            *_gain(comparison),
            Section("What was trained", tables=[_table(counts_grid(comparison.methods))]),
            Section("What the names mean", tables=[_words(comparison)]),
            Section("Make this page again", code=command),
        ],
        footer="Every number on this page is computed from metrics.json, per_image.csv and history.jsonl of the runs.",
    )
    save_page(path, page)


def _differences(comparison: Compared) -> list[Section]:
    if comparison.against is None:
        return []
    title = comparison.against.title
    figure = draw_effects(comparison)
    charts, note = [], "No row has a difference that can be drawn."
    if figure is not None:
        note = (
            f"A line is the 95 % interval of the mean difference over the images; a dot is filled where its p-value, "
            f"corrected for the number of rows, is below {SURE}."
        )
        pairs = zip(comparison.methods, comparison.effects, strict=True)
        about = [f"{method.title} {found.to_text(comparison.number)}" for method, found in pairs if found is not None]
        charts.append(Chart(f"{comparison.axis}, minus that of {title}", figure, "; ".join(about), wide=True))
    return [Section(f"Differences to {title}", note, charts, [_table(grid) for grid in comparison.results[1:]])]


def _pictures(images: Sequence[SameImage], metric: str) -> list[Section]:
    if not images:
        return [Section("The same images side by side", _NO_PICTURES)]
    sections = []
    for image in images:
        note = f"Not among the pictures of: {'; '.join(image.missing)}." if image.missing else ""
        pictures = []
        for overlay in image.overlays:
            seed = "" if overlay.seed is None else f", seed {overlay.seed}"
            caption = f"{overlay.title}: {overlay.value:.3f}{seed}"
            pictures.append(Picture(caption, overlay.file, _WIDTH))
        sections.append(Section(f"Image {image.name}: {image.why}", note, pictures=pictures))
    about = (
        f"Chosen among the images of which two rows or more left a picture; numbers are {metric} of this image in the "
        "first run of each row."
    )
    return [Section("The same images side by side", about), *sections]


def _gain(comparison: Compared) -> list[Section]:
    figures = {cost: draw_gain(comparison, cost) for cost in GAINS}
    charts = [
        Chart(f"{comparison.axis} against {GAINS[cost][0]}", figure, "The tables have the numbers.", wide=True)
        for cost, figure in figures.items()
        if figure is not None
    ]
    note = "" if charts else "Time and memory of these runs are not known: they have no history.jsonl."
    return [Section("Cost against gain", note, charts, [_table(cost_grid(comparison.methods))])]


def _table(grid: Grid) -> Table:
    """Returns a table of the page; a heading that comes twice also says what it stands beside."""
    columns, rows = grid
    kinds: dict[str, Kind] = {}
    for place, column in enumerate(columns):
        name = f"{column} ({columns[place - 1]})" if list(columns).count(column) > 1 else column
        kinds[name] = "number" if place else "name"
    return Table(kinds, rows)


def _words(comparison: Compared) -> Table:
    return Table({"Name": "name", "Meaning": "words"}, list(comparison.notes.items()))
