"""The page of a selection: where it lies, what it shares with another one, how sure it is. One HTML file, as a run's.

The frame and the style are those of a run's report; nothing is loaded from elsewhere and no script runs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from samtune.insight import pictures as pictures
from samtune.insight.distribution import Amount, Distribution, Overlap, Shared
from samtune.insight.stability import Noise, Stability
from samtune.report.page import save_page

_COUNTS = {
    "selected": ("Selected entries", "Chosen entries of weights, and weights that train whole."),
    "bias": ("Biases", "Biases of linear and conv layers that train."),
    "norm": ("Norms", "Scales and shifts of norms that train."),
    "decoder": ("Mask decoder", "The mask decoder with the no-mask embedding."),
    "head": ("Head", "The classification head."),
    "added": ("Added modules", "Parameters that the pretrained model does not have."),
}
# The pictures are on white in the dark style too.
_PICTURE = "display:block;width:100%;height:auto;margin-top:12px;border-radius:8px"
_FACTS = ("method", "model", "loss", "seed", "budget")


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
        path: of the HTML file.
        title: headline, such as the name of the run.
        distribution: of the selection.
        overlap: of this selection (first) with another one (second).
        noise: of its scores.
        stability: between seeds and halves.
        counts: trainable parameters by kind, "total" and "percent", see `samtune.tuning.Counts.to_json`.
        provenance: where the selection came from.

    Raises:
        DiskError: the file can't be written.
    """
    sections = [
        _count_section(counts),
        _distribution_section(distribution),
        "" if overlap is None else _overlap_section(overlap),
        "" if noise is None else _noise_section(noise, chosen=bool(distribution.total.chosen)),
        "" if stability is None else _stability_section(stability),
        _section("Provenance", "", _table(("Key", "Value"), list(provenance.items()), words=True)),
    ]
    save_page(
        path,
        kind="selection",
        title=title,
        facts={key.capitalize(): provenance[key] for key in _FACTS if key in provenance},
        sections=sections,
        footer="Distribution and overlap can be computed again from the selection files, noise from the score file, "
        "stability from the training images.",
    )


def _count_section(counts: Mapping[str, float]) -> str:
    rows = [(label, _count(counts[key]), about) for key, (label, about) in _COUNTS.items() if counts.get(key)]
    percent = f"{counts['percent']:.3g} % of the model's parameters." if "percent" in counts else ""
    rows.append(("Total", _count(counts.get("total", 0)), percent))
    return _section("What trains", "", _table(("Kind", "Parameters", "Definition"), rows, total=True, words=True))


def _distribution_section(found: Distribution) -> str:
    whole = f"Tensors that train whole ({found.whole:,} parameters) are the method's choice and not counted here."
    if not found.total.trained:
        words = "This selection chooses no entries and adds no parameters, so there is no distribution to show."
        return _section("Distribution", f"{words} {whole}", "")
    note = (
        "The selection is the chosen entries of weights plus the parameters of added modules. Share is a part's "
        f"percentage of the selection; density is its chosen entries per 10,000 entries of the weights there. {whole}"
    )
    cards = _cards(
        ("Share by part of the network", pictures.by_part(found)),
        ("Share by operation", pictures.by_operation(found)),
    )
    heat = _cards(("Share by part and operation; grey: there is no such weight", pictures.heat_map(found)))
    tables = [_amount_table(found, found.by("part"), "Part"), _amount_table(found, found.by("operation"), "Operation")]
    return _section("Distribution", note, cards + heat + "".join(tables))


def _amount_table(found: Distribution, amounts: Mapping[str, Amount], kind: str) -> str:
    added = found.total.added > 0
    rows = []
    for label, amount in (*amounts.items(), ("Total", found.total)):
        density = f"{1e4 * amount.chosen / amount.entries:.2f}" if amount.entries else "n/a"
        more = [_count(amount.added)] if added else []
        rows.append((label, _count(amount.chosen), *more, f"{100 * found.share(amount):.2f} %", density))
    columns = (kind, "Chosen entries", *(["Added parameters"] if added else []), "Share", "Density (per 10,000)")
    return _table(columns, rows, total=True)


def _overlap_section(found: Overlap) -> str:
    note = (
        "Jaccard index: entries that both selections chose, divided by the entries that either chose (1: the same, "
        "0: nothing in common). Shared: the percentage of this selection's entries that the other chose too. By "
        "chance: the Jaccard index of random selections with as many entries in every row. Tensors that train whole "
        f"in either selection are left out; the other one chooses entries in {len(found.left_out)} of these."
    )
    if not found.total.first + found.total.second:
        return _section("Overlap", "Neither selection chooses entries, so there is nothing to compare.", "")
    card = _cards(("Entries chosen by one or by both", pictures.overlap_bars(found, names=("this", "the other"))))
    rows = [(part, *_shared_cells(shared)) for part, shared in found.parts.items() if shared.first or shared.second]
    rows.append(("Total", *_shared_cells(found.total)))
    columns = ("Part", "This", "Other", "Both", "Jaccard index", "By chance", "Shared")
    return _section("Overlap with another selection", note, card + _table(columns, rows, total=True))


def _shared_cells(found: Shared) -> tuple[str, ...]:
    shared = _percent(found.both / found.first if found.first else math.nan)
    amounts = (_count(found.first), _count(found.second), _count(found.both))
    return (*amounts, _index(found.jaccard), _index(found.expected_jaccard), shared)


def _noise_section(found: Noise, *, chosen: bool) -> str:
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
    columns = ("Part", "Of chosen entries", "Of all entries", "Chosen entries", "All entries")
    card = _cards(("Entries that can't be told from zero", pictures.noise_bars(found))) if chosen else ""
    return _section("Noise of the scores", note, card + _table(columns, rows, total=True))


def _stability_section(found: Stability) -> str:
    if not found.seeds and not found.halves:
        return ""
    note = (
        "The Jaccard index between selections by the same method: with two seeds of the scoring loss on the same "
        "images, and on two halves of the images without a common one. A half has half the images, so the full "
        "selection is more stable than this."
    )
    rows = [
        (label, _index(pair.total.jaccard), _index(pair.total.expected_jaccard))
        for label, pair in (*found.seeds, *found.halves)
    ]
    return _section("Stability", note, _table(("Between", "Jaccard index", "By chance"), rows))


def _section(heading: str, note: str, body_html: str) -> str:
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(heading)}</h2>{words}{body_html}" if note or body_html else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False, words: bool = False) -> str:
    """Returns a table of numbers with a name on the left; `total` sets the last row apart, `words` ends it in text."""
    if not rows:
        return ""
    last = len(columns) - 1 if words else len(columns)
    styles = ["", *(' class="number"' if index < last else ' class="about"' for index in range(1, len(columns)))]
    pairs = zip(columns, styles, strict=True)
    head = "".join(f'<th scope="col"{"" if "about" in style else style}>{escape(name)}</th>' for name, style in pairs)
    body = ""
    for index, (name, *cells) in enumerate(rows):
        kind = ' class="total"' if total and index == len(rows) - 1 else ""
        values = "".join(f"<td{style}>{escape(cell)}</td>" for cell, style in zip(cells, styles[1:], strict=True))
        body += f'<tr{kind}><th scope="row">{escape(name)}</th>{values}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" style="margin-top:16px" tabindex="0">{table}</div>'


def _cards(*drawn: tuple[str, bytes]) -> str:
    """Returns pictures side by side where there is room."""
    cards = ""
    for heading, png in drawn:
        source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        image = f'<img alt="{escape(heading)}" src="{source}" style="{_PICTURE}">'
        cards += f'<div class="card"><h3>{escape(heading)}</h3>{image}</div>'
    return f'<div class="cards" style="margin-top:16px">{cards}</div>'


def _count(value: float) -> str:
    return f"{int(value):,}"


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def _index(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"
