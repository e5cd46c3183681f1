"""The drawings of the report, as inline SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 16, 28


def curve(points: Sequence[tuple[float, float]], *, label: str, form: str) -> str:
    """Draws a curve with a labelled grid and its last value.

    Args:
        points: two or more (epoch, value), by rising epoch; values are finite.
        label: what the curve shows, for readers who can't see it.
        form: format of the last value, such as "{:.3f}".
    """
    xs, ys = zip(*points, strict=True)
    ticks = nice_ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0])
        up = (y - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(xs[0], tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for epoch in _some_epochs(xs):
        x, _ = place(epoch, low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{epoch:g}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    x, y = place(*points[-1])
    falling = len(ys) > 1 and ys[-1] < ys[-2]
    text_y = y - 12 if falling or y > _HEIGHT - _BOTTOM - 26 else y + 22
    last = form.format(ys[-1])
    parts += [
        f'<polyline class="curve" points="{line}"/>',
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        f'<text class="value-text" x="{x:.1f}" y="{text_y:.1f}" text-anchor="end">{last}</text>',
    ]
    about = f"{label}: {form.format(ys[0])} at epoch {xs[0]:g}, {last} at epoch {xs[-1]:g}"
    return _svg(_WIDTH, _HEIGHT, about, parts)


def interval(now: float, *, low: float | None, high: float | None, before: float | None, label: str) -> str:
    """Draws a number in [0, 1] on a bar, with its interval and, in grey, where it was before."""
    width, middle = 460, 11
    parts = [f'<rect class="track" x="0" y="{middle - 2}" width="{width}" height="4" rx="2"/>']
    if low is not None and high is not None:
        x, span = width * low, max(width * (high - low), 2)
        parts.append(f'<rect class="range" x="{x:.1f}" y="{middle - 7}" width="{span:.1f}" height="14" rx="4"/>')
    if before is not None:
        parts.append(f'<circle class="before" cx="{width * before:.1f}" cy="{middle}" r="5"/>')
    parts.append(f'<circle class="now" cx="{width * now:.1f}" cy="{middle}" r="6"/>')
    return _svg(width, 2 * middle, label, parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Returns 3 to 7 round numbers at even steps of 1, 2 or 5 x 10^n that enclose `low` and `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - max(0.5, abs(low) / 10), high + max(0.5, abs(high) / 10)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _some_epochs(epochs: Sequence[float]) -> list[float]:
    """Returns at most 7 epochs, always with the first and the last."""
    every = max(1, math.ceil((len(epochs) - 1) / 6))
    chosen = list(epochs[:-1:every])
    if len(chosen) > 1 and len(epochs) - 1 - every * (len(chosen) - 1) < every / 2:
        chosen.pop()
    return [*chosen, epochs[-1]]


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
