"""Pictures of a comparison: effects, costs (GPS Fig. 4), accuracy by shots (Fig. 10), features (Fig. 13)."""

import logging
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samtune.base.figures import GRID, new_figure, save_figure
from samtune.compare.charts import draw_effects
from samtune.compare.compare import Compared
from samtune.compare.read import Method, Run
from samtune.compare.tables import cost_numbers

logger = logging.getLogger(__name__)

TSNE_CLASSES, TSNE_POINTS = 10, 1000  # at most; more is neither readable nor quick
COST_PANELS = {  # fact -> title, unit, factor
    "seconds": ("training time", "min", 1 / 60),
    "memory_mib": ("training memory", "MiB", 1.0),
    "test_seconds": ("test time", "s", 1.0),
    "test_memory_mib": ("test memory", "MiB", 1.0),
}
OPEN = {"axes.spines.top": False, "axes.spines.right": False}
STYLE: Any = {"font.size": 9, "axes.axisbelow": True, "grid.color": GRID, **OPEN}

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def save_figures(comparison: Compared, folder: Path) -> list[Path]:
    """Draws what there are data for: `effects.png`, `cost.png`, `few_shot.png`, `tsne.png`; returns the drawn files."""
    import matplotlib  # late, as the library is large

    folder.mkdir(parents=True, exist_ok=True)
    methods, saved = [method for method in comparison.methods if method.runs], list[Path]()
    draws = {name: partial(draw, methods) for name, draw in PICTURES.items()}
    effects = {"effects": partial(draw_effects, comparison)} if comparison.against else {}
    for name, draw in {**effects, **draws}.items():
        with matplotlib.rc_context(STYLE):
            figure = draw()
        if figure is None:
            logger.info("%s.png is not drawn: the runs have no data for it", name)
            continue
        saved.append(folder / f"{name}.png")
        save_figure(saved[-1], figure)
    return saved


def draw_costs(methods: Sequence[Method]) -> Any:
    """Returns a panel of bars for each cost that is known of any run, see `cost_numbers`; None without one."""
    costs = [cost_numbers(method) for method in methods]
    known = [name for name in COST_PANELS if any(cost[name] is not None for cost in costs)]
    if not known:
        return None
    figure = new_figure(2.0 + 2.4 * len(known), 1.0 + 0.28 * len(methods), dpi=150)
    axes = figure.subplots(1, len(known), sharey=True, squeeze=False)
    places = range(len(methods))
    for name, axis in zip(known, axes[0], strict=True):
        title, unit, factor = COST_PANELS[name]
        values = [factor * (cost[name] or 0.0) for cost in costs]
        bars = axis.barh(places, values, color="#4878a8", height=0.7)
        texts = ["" if cost[name] is None else f" {value:.3g}" for value, cost in zip(values, costs, strict=True)]
        axis.bar_label(bars, texts, fontsize=7)
        axis.set(title=title, xlabel=unit, yticks=places)
        axis.set_yticklabels([method.title for method in methods])
        axis.grid(axis="x")
        axis.margins(x=0.18)
    axes[0][0].invert_yaxis()  # the first row of the table on top; the panels share the axis
    return figure


def draw_shots(methods: Sequence[Method]) -> Any:
    """Returns results by `data.shots`, a line per method, ± one deviation over the seeds; None without two shots."""
    curves = {method.title: _by_shots(method) for method in methods}
    shots = sorted({shot for curve in curves.values() for shot in curve})
    if len(shots) < 2:
        return None
    figure = new_figure(6.4, 3.6, dpi=150)
    axis = figure.subplots()
    for (title, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        x = sorted(curve)
        mean = np.array([statistics.fmean(curve[shot]) for shot in x])
        spread = np.array([statistics.stdev(curve[shot]) if len(curve[shot]) > 1 else 0.0 for shot in x])
        axis.plot(x, mean, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=title)
        axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(shot) for shot in shots])
    axis.set(xlabel="training images per class", ylabel=methods[0].runs[0].words.axis)
    axis.grid()
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_features(methods: Sequence[Method]) -> Any:
    """Returns t-SNE maps of the features of test images, one per method: its first seed, on the first task with any."""
    from matplotlib.lines import Line2D

    tasks = dict.fromkeys(task for method in methods for task in method.rows)
    task, runs = next(((task, runs) for task in tasks if (runs := _runs_with_features(methods, task))), ("", []))
    if not runs:
        return None
    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    figure = new_figure(2.9 * columns, 2.9 * lines + 0.5, dpi=150)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for (title, run), axis in zip(runs, axes.flat[: len(runs)], strict=True):
        places, labels = _map(run)
        shown = np.unique(labels)
        axis.set(xticks=[], yticks=[])  # a distance has no meaning across a map
        axis.spines[:].set(visible=True, color="#cccccc")
        axis.scatter(*places.T, c=np.searchsorted(shown, labels), cmap="tab10", vmin=0, vmax=9, s=5, linewidths=0)
        axis.set_title(title)
    report = runs[0][1].report
    dot: Any = {"marker": "o", "linestyle": "", "markersize": 4}
    named = zip(_colours(len(shown)), map(report.label_name, map(int, shown)), strict=True)
    handles = [Line2D([], [], color=colour, label=name, **dot) for colour, name in named]
    figure.suptitle(task)
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _by_shots(method: Method) -> dict[int, list[float]]:
    """Returns shots -> first reported value of each seed, in percent."""
    curve: dict[int, list[float]] = {}
    for run in method.runs:
        if (shots := run.setting("data.shots")) is not None:
            curve.setdefault(int(shots), []).append(100 * run.report.choice)
    return curve


def _runs_with_features(methods: Sequence[Method], task: str) -> list[tuple[str, Run]]:
    first = [(m.title, m.rows[task].runs[0]) for m in methods if task in m.rows and m.rows[task].runs]
    return [(title, run) for title, run in first if (run.folder / "features.safetensors").is_file()]


def _map(run: Run) -> tuple[FloatArray, FloatArray]:
    """Returns places (n, 2) and labels (n,) of the images of the first classes, the same for every method."""
    from sklearn.manifold import TSNE

    from samtune.base.tensors import load_tensors

    tensors = load_tensors(run.folder / "features.safetensors")
    features, labels = tensors["features"].float().numpy(), tensors["labels"].numpy()
    kept = np.flatnonzero(np.isin(labels, np.unique(labels)[:TSNE_CLASSES]))
    if len(kept) > TSNE_POINTS:
        kept = np.sort(np.random.default_rng(0).choice(kept, TSNE_POINTS, replace=False))
    tsne = TSNE(perplexity=min(30.0, max(1.0, (len(kept) - 1) / 3)), init="pca", random_state=0)
    return tsne.fit_transform(features[kept]), labels[kept]


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](index % 20) for index in range(count)]


PICTURES = {"cost": draw_costs, "few_shot": draw_shots, "tsne": draw_features}
