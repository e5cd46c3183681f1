"""What trained, or would train? A table of parameters by kind, for the pages of runs and of selections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samtune.report.page import Kind, Section, Table

_KINDS = {
    "selected": ("Selected entries", "Chosen entries of weights, and weights that train whole."),
    "bias": ("Biases", "Biases of linear and conv layers that train."),
    "norm": ("Norms", "Scales and shifts of norms that train."),
    "decoder": ("Mask decoder", "The mask decoder with the no-mask embedding."),
    "head": ("Head", "The classification head."),
    "added": ("Added modules", "Parameters that the pretrained model does not have."),
}


def trained_sections(heading: str, counts: Mapping[str, float]) -> Sequence[Section]:
    """Returns the section of the table; none without counts.

    Args:
        heading: of the section.
        counts: parameters by kind, "total", and "percent" of all parameters of the model; see
            `samtune.tuning.Counts.to_json`.
    """
    if not counts:
        return []
    total = int(counts["total"])
    rows = [
        (label, f"{int(counts[kind]):,}", f"{100 * counts[kind] / total:.1f}", about)
        for kind, (label, about) in _KINDS.items()
        if counts.get(kind)
    ]
    whole = f"{counts['percent']:.3g} % of the model's parameters." if "percent" in counts else ""
    rows.append(("Total", f"{total:,}", "", whole))
    columns: dict[str, Kind] = {"Part": "name", "Parameters": "number", "Share": "bar", "Definition": "words"}
    return [Section(heading, tables=[Table(columns, rows, total=True)])]
