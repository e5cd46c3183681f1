"""What does the report of a run show? Result, training curves, what the task drew, all numbers, how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtune.base.figures import ACCENT, INK, new_axes
from samtune.report.page import Card, Chart, Kind, Page, Section, Table, Trend, percent, save_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Event = Mapping[str, Any]
Point = tuple[float, float]

_KINDS = {
    "selected": ("Selected entries", "Chosen entries of weights, and weights that train whole."),
    "bias": ("Biases", "Biases of linear and conv layers that train."),
    "norm": ("Norms", "Scales and shifts of norms that train."),
    "decoder": ("Mask decoder", "The mask decoder with the no-mask embedding."),
    "head": ("Head", "The classification head, or the tokens of the classes of pixels."),
    "added": ("Added modules", "Parameters that the pretrained model does not have."),
}


@dataclass(frozen=True)
class Run:
    """What is known of a run when it ends; a part without data is left out of the report.

    Attributes:
        facts: a few words each, such as {"Model": "sam_vit_b"}.
        metrics: content of `metrics.json`, see `samtune.metrics.report.AnyReport.to_json`.
        headlines: name of a metric -> its label, of the cards.
        choice: the metric by which epochs are chosen, one of the headlines.
        history: events of `history.jsonl`: "time", "epoch", "split" and values by name.
        best_epoch: the epoch whose weights were kept, from 1.
        sections: what the task shows, between the curves and the tables.
        command: repeats the run.
    """

    title: str
    facts: Mapping[str, str]
    metrics: Mapping[str, Any]
    headlines: Mapping[str, str]
    choice: str
    history: Sequence[Event]
    best_epoch: int
    sections: Sequence[Section]
    command: str
    config_yaml: str


def save_report(path: Path, run: Run) -> None:
    """Writes the report of a run to an HTML file.

    Raises:
        DiskError: a picture can't be read or the file can't be written.
    """
    page = Page(
        kind="run",
        title=run.title,
        facts={**run.facts, **_when(run.history)},
        cards=[_card(run.metrics, name, label) for name, label in run.headlines.items() if name in run.metrics],
        sections=[
            *_advice(run.metrics.get("advice") or ()),
            *_training(run),
            *run.sections,
            *_all_metrics(run.metrics),
            *trained_sections("What was trained", run.metrics.get("trainable") or {}),
            *_code("Reproduce", run.command),
            *_code("Configuration", run.config_yaml, folded=True),
        ],
        footer="Every number on this page can be computed again from metrics.json, per_image.csv and "
        "history.jsonl in the same folder.",
    )
    save_page(Path(path), page)


def _when(history: Sequence[Event]) -> dict[str, str]:
    facts = {}
    if times := [event["time"] for event in history if "time" in event]:
        facts["Finished"] = f"{datetime.fromtimestamp(times[-1], UTC):%Y-%m-%d %H:%M} UTC"
    if seconds := [event["seconds"] for event in history if event.get("split") == "fit"]:
        facts["Training took"] = _duration(seconds[-1])
    if selecting := [event for event in history if event.get("split") == "select"]:
        facts["Selecting took"] = f"{selecting[-1]['seconds']:.1f} s, {selecting[-1]['memory_mib']:,.0f} MiB"
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _card(metrics: Mapping[str, Any], name: str, label: str) -> Card:
    now, before = metrics[name], (metrics.get("before") or {}).get(name)
    interval, gain = _bounds(metrics.get("ci95"), name), _bounds(metrics.get("gain"), name)
    words = [f"{metrics.get('n_images', 0):,} {metrics.get('split', 'test')} images"]
    if interval is not None:
        words.append(f"95 % interval {percent(interval[0])} to {percent(interval[1])}")
    trend: Trend = "unsure"
    if gain is not None:
        low, high = gain
        trend = "up" if low > 0 else "down" if high < 0 else "unsure"
        holds = ", holds 0" if trend == "unsure" else ""
        words.append(f"gain {100 * low:+.1f} to {100 * high:+.1f} points (95 % interval{holds})")
    change = "" if now is None or before is None else f"{100 * (now - before):+.1f} points"
    return Card(f"{label} ({name})", percent(now), now, interval, before, change, trend, words)


def _bounds(numbers: Mapping[str, Any] | None, name: str) -> tuple[float, float] | None:
    """Returns the interval that the last two numbers of a name are; None where it is undefined."""
    *_, low, high = (numbers or {}).get(name) or (None, None)
    return None if low is None or high is None else (low, high)


def _training(run: Run) -> list[Section]:
    charts = []
    losses = series(run.history, "train", "loss")
    if len(losses) > 1:
        charts.append(_curve_chart("Training loss", losses, form="{:.3f}"))
    values = [(epoch, 100 * value) for epoch, value in series(run.history, "val", run.choice)]
    if len(values) > 1:
        label = run.headlines[run.choice]
        label = f"Validation {label[0].lower()}{label[1:]}"
        charts.append(_curve_chart(label, values, form="{:.1f}", best=run.best_epoch))
    return [Section("Training", charts=charts)] if charts else []


def series(history: Sequence[Event], split: str, name: str) -> list[Point]:
    """Returns (epoch, mean of the finite values of that epoch), by epoch."""
    values: dict[float, list[float]] = {}
    for event in history:
        value, epoch = event.get(name), event.get("epoch")
        if event.get("split") == split and epoch is not None and value is not None and math.isfinite(value):
            values.setdefault(float(epoch), []).append(float(value))
    return [(epoch, sum(group) / len(group)) for epoch, group in sorted(values.items())]


def _curve_chart(label: str, points: Sequence[Point], *, form: str, best: int | None = None) -> Chart:
    (first, start), (last, end) = points[0], points[-1]
    about = f"{label}: {form.format(start)} at epoch {first:g}, {form.format(end)} at epoch {last:g}"
    note, ringed = "", next((point for point in points if point[0] == best), None)
    if ringed is not None:
        note = f"Ringed: {form.format(ringed[1])} at epoch {best}, the best; its weights were kept."
        about = f"{about}; the best is {form.format(ringed[1])} at epoch {best}"
    return Chart(f"{label} by epoch", curve(points, form=form, ringed=ringed), about, note)


def curve(points: Sequence[Point], *, form: str, ringed: Point | None = None) -> Figure:
    """Draws a curve with the value of its end beside it.

    Args:
        points: two or more (epoch, value), by rising epoch; values are finite.
        form: format of the value, such as "{:.3f}".
        ringed: a point that is marked by a ring.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(5.0, 2.3)
    xs, ys = zip(*points, strict=True)
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(min(ys), max(ys))
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)
    axes.plot(xs, ys, color=ACCENT, linewidth=1.8, solid_joinstyle="round", solid_capstyle="round")
    axes.plot(xs[-1:], ys[-1:], color=ACCENT, marker="o", markersize=5)
    if ringed is not None:
        axes.plot(*ringed, color=ACCENT, marker="o", markersize=11, fillstyle="none", markeredgewidth=1.5)
    beside: Any = {"xytext": (9, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
    axes.annotate(form.format(ys[-1]), (xs[-1], ys[-1]), color=INK, fontsize=9.5, fontweight="bold", **beside)
    return figure


def trained_sections(heading: str, counts: Mapping[str, float]) -> Sequence[Section]:
    """Returns the section of what trained, or would train, by kind, for runs and selections; none without counts.

    Args:
        counts: parameters by kind, "total", and "percent" of all of the model; see `samtune.tuning.Counts.to_json`.
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


def _advice(lines: Sequence[str]) -> list[Section]:
    return (
        [Section("Before you rely on it", lines=[f"{line[:1].upper()}{line[1:]}" for line in lines])] if lines else []
    )


def _all_metrics(metrics: Mapping[str, Any]) -> list[Section]:
    values, definition = metrics.get("metrics") or {}, metrics.get("definition") or {}
    values = values | (metrics.get("trivial") or {})
    rows = [(name, _number(value), definition.get(name, "")) for name, value in values.items()]
    table = Table({"Metric": "name", "Value": "number", "Definition": "words"}, rows)
    return [Section("All metrics", tables=[table])] if rows else []


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _code(heading: str, text: str, *, folded: bool = False) -> list[Section]:
    return [Section(heading, code=text.strip(), folded=folded)] if text.strip() else []
