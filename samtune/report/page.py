"""The report of a run: one HTML file that explains itself, works offline, and can be mailed.

Nothing is loaded from elsewhere and no script runs: styles and pictures are inside, curves are SVG. The frame
and the style of the page are in `report.html` beside this module.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from samtune.base.disk import write_text
from samtune.errors import DiskError
from samtune.report.svg import curve, interval

_HEADLINES = {
    "mDice": "Mean Dice",
    "mIoU": "Mean IoU",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_per_class": "Mean per class",
}
_COUNTS = {
    "selected": "Selected entries of the encoder",
    "bias": "Biases",
    "norm": "Norms",
    "decoder": "Mask decoder",
    "head": "Head",
    "added": "Added modules",
}
_CURVES = (
    ("train", "loss", "Training loss", "{:.3f}"),
    ("val", "mDice", "Validation mDice", "{:.1f}"),
    ("val", "top1", "Validation top-1 accuracy", "{:.1f}"),
)
_NUMBER = ' class="number"'
OVERLAYS_NOTE = (
    "Best, median and worst images by Dice. The last panel shows the errors: green is right, red is too much, blue "
    "was missed."
)
MISTAKES_NOTE = "The images on which the model is wrong and most sure of itself, the surest first."


def save_report(
    path: Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    counts: Mapping[str, float],
    overlays: Sequence[tuple[str, Path]],
    command: str,
    config_yaml: str,
    facts: Mapping[str, str],
    pictures_note: str = OVERLAYS_NOTE,
    extra_sections: Sequence[str] = (),
) -> None:
    """Writes the report to `path`; a part without data is left out.

    Args:
        path: of the HTML file.
        title: headline, such as the name of the run.
        metrics: content of `metrics.json`, see `to_json` of `samtune.tasks.masks.report.Report` and of
            `samtune.tasks.classes.report.ClassReport`; the headline shows those of its numbers that have a label here.
        history: events of `history.jsonl`: "epoch", "split" and values by name.
        counts: trainable parameters, as `metrics["trainable"]`: parts, "total" and "percent".
        overlays: (caption, PNG file) in the order to show.
        command: repeats the run.
        config_yaml: the resolved configuration.
        facts: a few words each, such as {"Model": "sam_vit_b"}, shown below the title.
        pictures_note: what the overlays show, plain text.
        extra_sections: HTML of further sections, shown after the pictures; see `wrong_classes_section`.

    Raises:
        DiskError: a picture can't be read or the file can't be written.
    """
    sections = [
        _headline(metrics),
        _curves(history),
        _gallery("Pictures", overlays, note=pictures_note),
        *extra_sections,
        _metric_table(metrics),
        _count_table(counts),
        _code("Reproduce", command),
        _code("Configuration", config_yaml, folded=True),
    ]
    save_page(
        Path(path),
        kind="run",
        title=title,
        facts=facts,
        sections=sections,
        footer="Every number on this page can be computed again from metrics.json, per_image.csv and "
        "history.jsonl in the same folder.",
    )


def save_page(
    path: Path, *, kind: str, title: str, facts: Mapping[str, str], sections: Sequence[str], footer: str
) -> None:
    """Writes a self-contained page in the look of the reports.

    Args:
        path: of the HTML file.
        kind: what the page reports on, one word.
        title: headline, plain text.
        facts: a few words each, shown below it, plain text.
        sections: HTML of each; empty ones are left out.
        footer: where the numbers come from, plain text.

    Raises:
        DiskError: the file can't be written.
    """
    template = Template((files("samtune.report") / "templates" / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        kind=escape(kind),
        title=escape(title),
        facts=_facts(facts),
        sections="\n".join(section for section in sections if section),
        footer=escape(footer),
    )
    write_text(path, page)


def wrong_classes_section(rows: Sequence[tuple[str, int, float, str]], confusion: Path) -> str:
    """Returns the section "Classes that go wrong": a table and the picture of the confusion matrix.

    Args:
        rows: (class, images, accuracy, most often taken for), see `samtune.tasks.classes.draw.worst_classes_table`.
        confusion: PNG file of the confusion matrix.

    Raises:
        DiskError: the picture can't be read.
    """
    heads = ("Class", "Images", "Accuracy", "Most often taken for")
    head = "".join(f'<th scope="col"{_NUMBER if name in heads[1:3] else ""}>{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td{_NUMBER}>{images:,}</td><td{_NUMBER}>{_percent(accuracy)}</td>'
        f'<td class="about">{escape(taken_for)}</td></tr>'
        for name, images, accuracy, taken_for in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    table = f'<div class="scroll" tabindex="0" style="margin-bottom:16px">{table}</div>' if rows else ""
    note = "The classes with the lowest top-1 accuracy, in percent." if rows else "No class goes wrong."
    caption = "Confusion matrix: a row holds the images of one class, a column the answers."
    return _gallery("Classes that go wrong", [(caption, confusion)], note=note, before=table)


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<li>{escape(name)} <b>{escape(str(value))}</b></li>" for name, value in facts.items())
    return f'<ul class="facts">{items}</ul>' if items else ""


def _headline(metrics: Mapping[str, Any]) -> str:
    cards = "".join(_headline_card(metrics, name, label) for name, label in _HEADLINES.items() if name in metrics)
    return f'<section class="cards" aria-label="Result">{cards}</section>'


def _headline_card(metrics: Mapping[str, Any], name: str, label: str) -> str:
    now, before = metrics.get(name), (metrics.get("before") or {}).get(name)
    low, high = (metrics.get("ci95") or {}).get(name) or (None, None)
    delta, bar = "", ""
    words = [f"{metrics.get('n_images', 0):,} {escape(str(metrics.get('split', 'test')))} images"]
    if now is not None:
        bar = interval(now, low=low, high=high, before=before, label=f"{label} from 0 to 100")
        if before is not None:
            change = 100 * (now - before)
            delta = f'<span class="delta{" down" if change < 0 else ""}">{change:+.1f} points</span>'
            if gain := (metrics.get("gain") or {}).get(name):
                words.append(f"gain {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f} points (95 % interval)")
    if before is not None:
        words.append(f'<i class="key"></i>{_percent(before)} before tuning')
    if low is not None and high is not None:
        words.append(f"95 % interval {_percent(low)} to {_percent(high)}")
    return (
        f'<div class="card"><h3>{label} ({name})</h3>'
        f'<div class="value"><strong>{_percent(now)}</strong>{delta}</div>{bar}'
        f"<p>{''.join(f'<span>{word}</span>' for word in words)}</p></div>"
    )


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for split, name, label, form in _CURVES:
        scale = 100 if split == "val" else 1
        points = _series(history, split, name, scale=scale)
        if len(points) > 1:
            drawn = curve(points, label=label, form=form)
            cards.append(f'<div class="card"><h3>{label} by epoch</h3>{drawn}</div>')
    return f'<h2>Training</h2><div class="cards" style="margin-top:0">{"".join(cards)}</div>' if cards else ""


def _series(history: Sequence[Mapping[str, Any]], split: str, name: str, *, scale: float) -> list[tuple[float, float]]:
    """Returns (epoch, mean of the finite values of that epoch), by epoch."""
    values: dict[float, list[float]] = {}
    for event in history:
        value, epoch = event.get(name), event.get("epoch")
        if event.get("split") != split or value is None or epoch is None:
            continue
        if math.isfinite(value):
            values.setdefault(float(epoch), []).append(scale * float(value))
    return [(epoch, sum(group) / len(group)) for epoch, group in sorted(values.items())]


def _gallery(heading: str, pictures: Sequence[tuple[str, Path]], *, note: str, before: str = "") -> str:
    figures = [
        f'<figure><img loading="lazy" alt="{escape(caption)}" src="{_inline_png(Path(path))}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in pictures
    ]
    if not figures:
        return ""
    return f'<h2>{heading}</h2><p class="note">{escape(note)}</p>{before}<div class="gallery">{"".join(figures)}</div>'


def _inline_png(path: Path) -> str:
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as err:
        raise DiskError(f"can't read the picture {path}: {err.strerror}. Save the overlays first.") from err


def _metric_table(metrics: Mapping[str, Any]) -> str:
    values, definition = metrics.get("metrics") or {}, metrics.get("definition") or {}
    rows = [_row(name, _number(value), escape(definition.get(name, ""))) for name, value in values.items()]
    return _table("All metrics", ("Metric", "Value", "Definition"), rows)


def _count_table(counts: Mapping[str, float]) -> str:
    parts = {label: int(counts[name]) for name, label in _COUNTS.items() if counts.get(name)}
    total = int(counts.get("total", sum(parts.values())))
    rows = [
        _row(label, f"{count:,}", f'<div class="bar"><i style="width:{100 * count / total:.1f}%"></i></div>')
        for label, count in parts.items()
    ]
    if rows:
        share = f"{counts['percent']:.3g} % of the model" if "percent" in counts else ""
        rows.append(_row("Total", f"{total:,}", share, style="total"))
    return _table("What was trained", ("Part", "Parameters", "Share"), rows)


def _table(heading: str, columns: tuple[str, str, str], rows: Sequence[str]) -> str:
    first, second, third = columns
    head = f'<tr><th scope="col">{first}</th><th scope="col" class="number">{second}</th><th>{third}</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>{heading}</h2><div class="scroll" tabindex="0">{table}</div>' if rows else ""


def _row(name: str, number: str, about_html: str, *, style: str = "") -> str:
    cells = f'<td class="number">{number}</td><td class="about">{about_html}</td>'
    return f'<tr class="{style}"><th scope="row">{escape(name)}</th>{cells}</tr>'


def _code(heading: str, text: str, *, folded: bool = False) -> str:
    if not text.strip():
        return ""
    block = f'<pre tabindex="0"><code>{escape(text.strip())}</code></pre>'
    if folded:
        lines = len(text.strip().splitlines())
        block = f"<details><summary>Show all {lines} lines</summary>{block}</details>"
    return f"<h2>{heading}</h2>{block}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
