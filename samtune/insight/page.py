"""A selection as a page: where it lies, what it shares with another one, how sure it is; one HTML file, as a run's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from samtune.insight import pictures
from samtune.insight.distribution import Distribution, Overlap, Shared, View
from samtune.insight.stability import Noise, Stability
from samtune.report.page import Chart, Kind, Page, Section, Table, save_page
from samtune.report.run import trained_sections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FACTS = ("method", "model", "loss", "seed", "budget")
_FOOTER = (
    "Distribution and overlap can be computed again from the selection files, noise from the score file, stability "
    "from the training images."
)


def save_selection_report(
    path: Path,
    *,
    title: str,
    distribution: Distribution,
    overlap: Overlap | None = None,
    noise: Noise | None = None,
    stability: Stability | None = None,
    counts: Mapping[str, float],
    provenance: Mapping[str, str],
) -> None:
    """Writes the page to `path`; a part without data is left out.

    Args:
        overlap: of this selection (first) with another one (second).
        counts: trainable parameters by kind, "total" and "percent", see `samtune.tuning.Counts.to_json`.

    Raises:
        DiskError: the file can't be written.
    """
    sections = [*trained_sections("What trains", counts), _distribution_section(distribution)]
    if overlap is not None:
        sections.append(_overlap_section(overlap))
    if noise is not None:
        sections.append(_noise_section(noise, chosen=bool(distribution.total.chosen)))
    if stability is not None and (stability.seeds or stability.halves):
        sections.append(_stability_section(stability))
    if provenance:
        table = Table({"Key": "name", "Value": "words"}, list(provenance.items()))
        sections.append(Section("Provenance", tables=[table]))
    facts = {key.capitalize(): provenance[key] for key in _FACTS if key in provenance}
    save_page(path, Page("selection", title, facts, (), sections, _FOOTER))


def _distribution_section(found: Distribution) -> Section:
    whole = f"Tensors that train whole ({found.whole:,} parameters) are the method's choice and not counted here."
    if not found.total.trained:
        words = "This selection chooses no entries and adds no parameters, so there is no distribution to show."
        return Section("Distribution", f"{words} {whole}")
    note = (
        "The selection is the chosen entries of weights plus the parameters of added modules. Share is a part's "
        f"percentage of the selection; density is its chosen entries per 10,000 entries of the weights there. {whole}"
    )
    charts = [
        _chart("Share by part of the network", pictures.shares(found, "part")),
        _chart("Share by operation", pictures.shares(found, "operation")),
        _chart("Share by part and operation; grey: there is no such weight", pictures.heat_map(found), wide=True),
    ]
    return Section("Distribution", note, charts, [_amount_table(found, "part"), _amount_table(found, "operation")])


def _amount_table(found: Distribution, view: View) -> Table:
    added = found.total.added > 0
    rows = []
    for label, amount in (*found.by(view).items(), ("Total", found.total)):
        density = f"{1e4 * amount.chosen / amount.entries:.2f}" if amount.entries else "n/a"
        more = [_count(amount.added)] if added else []
        rows.append((label, _count(amount.chosen), *more, f"{100 * found.share(amount):.2f} %", density))
    columns = ("Chosen entries", *(["Added parameters"] if added else []), "Share", "Density (per 10,000)")
    return Table(_numbers(view.capitalize(), *columns), rows, total=True)


def _overlap_section(found: Overlap) -> Section:
    note = (
        "Jaccard index: entries that both selections chose, divided by the entries that either chose (1: the same, "
        "0: nothing in common). Shared: the percentage of this selection's entries that the other chose too. By "
        "chance: the Jaccard index of random selections with as many entries in every row. Tensors that train whole "
        f"in either selection are left out; the other one chooses entries in {len(found.left_out)} of these."
    )
    if not found.total.first + found.total.second:
        return Section("Overlap", "Neither selection chooses entries, so there is nothing to compare.")
    bars = pictures.overlap_bars(found, names=("this", "the other"))
    chart = _chart("Entries chosen by one or by both", bars, wide=True)
    rows = [(part, *_shared_cells(shared)) for part, shared in found.parts.items() if shared.first or shared.second]
    rows.append(("Total", *_shared_cells(found.total)))
    columns = _numbers("Part", "This", "Other", "Both", "Jaccard index", "By chance", "Shared")
    return Section("Overlap with another selection", note, [chart], [Table(columns, rows, total=True)])


def _shared_cells(found: Shared) -> tuple[str, ...]:
    shared = _percent(found.both / found.first if found.first else math.nan)
    amounts = (_count(found.first), _count(found.second), _count(found.both))
    return (*amounts, _index(found.jaccard), _index(found.expected_jaccard), shared)


def _noise_section(found: Noise, *, chosen: bool) -> Section:
    note = (
        f"The score of an entry is a sum of {found.gradients:,} gradients. The percentages are of entries whose "
        "|sum| is no larger than its standard error, sqrt(n / (n - 1) * (sum of squares - sum^2 / n)). If all "
        f"gradients were noise around zero, {_percent(found.pure)} of all entries would be. Chosen entries were "
        "picked for large sums, so their share is lower even then: stability shows what can be trusted."
    )
    rows = [
        (part, _percent(counts.chosen_share), _percent(counts.share), _count(counts.chosen), _count(counts.entries))
        for part, counts in (*found.parts.items(), ("Total", found.total))
    ]
    columns = _numbers("Part", "Of chosen entries", "Of all entries", "Chosen entries", "All entries")
    chart = _chart("Entries that can't be told from zero", pictures.noise_bars(found), wide=True)
    return Section("Noise of the scores", note, [chart] if chosen else (), [Table(columns, rows, total=True)])


def _stability_section(found: Stability) -> Section:
    note = (
        "The Jaccard index between selections by the same method: with two seeds of the scoring loss on the same "
        "images, and on two halves of the images without a common one. A half has half the images, so the full "
        "selection is more stable than this."
    )
    totals = [(label, pair.total) for label, pair in (*found.seeds, *found.halves)]
    rows = [(label, _index(total.jaccard), _index(total.expected_jaccard)) for label, total in totals]
    return Section("Stability", note, tables=[Table(_numbers("Between", "Jaccard index", "By chance"), rows)])


def _chart(heading: str, figure: Figure, *, wide: bool = False) -> Chart:
    return Chart(heading, figure, heading, wide=wide)


def _numbers(name: str, *columns: str) -> dict[str, Kind]:
    """Returns the columns of a table of numbers with a name on the left."""
    numbers: dict[str, Kind] = dict.fromkeys(columns, "number")
    return {name: "name", **numbers}


def _count(value: float) -> str:
    return f"{int(value):,}"


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def _index(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"
