"""One look for all pictures: colours that colour-blind readers can tell apart, panels, labelled lines."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.typing import LineStyleType

from pipeline.report import statistics
from pipeline.report.summary import methods
from pipeline.report.wording import method_name, reference_name

WIDTH = 8.5  # inches: a page's text width, so that type keeps its size on paper
INK = "#333333"
FAINT = "#d9d9d9"

CROWD = 3  # more methods than this in one panel: only their means, no bands over tasks and no lines of single seeds

# Okabe-Ito blue, orange, vermillion, sky; then darker hues of Tol's muted set.
_METHOD_COLOURS = {
    "full": "#0072B2",
    "no_relabelling": "#E69F00",
    "no_triplet": "#D55E00",
    "neither": "#56B4E9",
    "ground_truth": "#882255",
    "no_ensemble": "#999933",
    "contextual_bcq": "#332288",
    "batch_pearl": "#44AA99",
    "metagenrl": "#AA4499",
}


class Reference(NamedTuple):
    """How a reference's line is drawn, the same in every picture."""

    colour: str
    dash: LineStyleType


REFERENCES = {
    "random": Reference("#8c8c8c", ":"),
    "zero_action": Reference("#8c8c8c", "-."),
    "best_blind_teacher": Reference("#CC79A7", "--"),
    "nearest_teacher": Reference("#009E73", "--"),
    "sac": Reference("#7F4F24", (0, (5, 1, 1, 1))),
    "bcq": Reference("#000000", (0, (6, 2))),
}

_RC: dict = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#ececec",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}


def reference(name: str) -> Reference:
    """Line of a reference; one that is not known is a dashed grey line."""
    return REFERENCES.get(name, Reference("#5f5f5f", "--"))


def method_colours(summary: dict) -> dict[str, str]:
    """A colour for each method: always the same for one with a name of its own, in order for points of a grid."""
    names = methods(summary)
    free = [colour for name, colour in _METHOD_COLOURS.items() if name not in names] or list(_METHOD_COLOURS.values())
    points = [name for name in names if name not in _METHOD_COLOURS]
    return {name: _METHOD_COLOURS.get(name) or free[points.index(name) % len(free)] for name in names}


def styled(draw: Callable[[dict], Figure]) -> Callable[[dict], Figure]:
    """Draw a figure with the report's settings, whatever the process has set for matplotlib."""

    @functools.wraps(draw)
    def wrapper(summary: dict) -> Figure:
        with rc_context(_RC):
            return draw(summary)

    return wrapper


def panels(
    count: int, columns: int, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of the report's width with `count` axes, filled row by row; `height` is that of one row."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * height + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).ravel())
    for spare in grid[count:]:
        spare.remove()
    for above_spare in grid[max(0, count - columns) : count]:
        above_spare.tick_params(labelbottom=True)
    return figure, grid[:count]


def step_axis(axes: Axes, ticks: int = 6) -> None:
    """A few ticks of the x axis, at whole numbers only, thousands written as K."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}K" if abs(x) >= 1000 else f"{x:g}")


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers, also when it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda y, _: f"{y:.3g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)) if high > 2 * low else MaxNLocator(4))


def legend(figure: Figure, entries: dict[str, Line2D], columns: int = 5) -> None:
    """One legend above all panels."""
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=min(len(entries), columns))


def key(colour: str, dash: LineStyleType = "-", marker: str = "", width: float = 1.6) -> Line2D:
    """A legend entry."""
    return Line2D([], [], color=colour, linestyle=dash, marker=marker, linewidth=width, markersize=5)


def labelled_lines(axes: Axes, levels: dict[str, float]) -> None:
    """Horizontal lines at the mean of each reference, named right of the axes; names never overlap."""
    known = sorted((value, name) for name, value in levels.items() if math.isfinite(value))
    for value, name in known:
        style = reference(name)
        axes.axhline(value, color=style.colour, linestyle=style.dash, linewidth=1.2, zorder=1.5)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    figure = axes.get_figure()
    rows = axes.get_subplotspec().get_gridspec().nrows  # type: ignore[union-attr]
    inches = figure.get_figheight() / rows * 0.75  # type: ignore[union-attr]
    heights = spread([value for value, _ in known], (high - low) * 0.15 / inches, high)
    for (value, name), height in zip(known, heights, strict=True):
        style = reference(name)
        axes.annotate(
            reference_name(name),
            xy=(1, value),
            xytext=(1.04, height),
            xycoords=("axes fraction", "data"),
            color=style.colour,
            fontsize=8,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style.colour,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def spread(values: Iterable[float], gap: float, high: float) -> list[float]:
    """Ascending values moved as little as needed to lie at least `gap` apart, and not above `high`."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    ceiling = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def band(axes: Axes, x: np.ndarray, scores: np.ndarray, colour: str) -> None:
    """Mean over tasks of `[x, tasks]` scores as a line with one (population) standard deviation shaded."""
    centre, spread_over_tasks = scores.mean(axis=1), scores.std(axis=1)
    axes.plot(x, centre, color=colour, linewidth=2.2, zorder=3, marker="o", markersize=3)
    axes.fill_between(x, centre - spread_over_tasks, centre + spread_over_tasks, color=colour, alpha=0.13, linewidth=0)


def seed_band(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Mean over seeds of `[seeds, x]` as a line, with the interval over seeds of `statistics.seed_interval` shaded."""
    axes.plot(x, values.mean(axis=0), color=colour, linewidth=2, zorder=3, marker="o", markersize=3)
    if len(values) > 1:
        axes.fill_between(x, *statistics.seed_interval(values), color=colour, alpha=0.18, linewidth=0)


def method_rows(axes: Axes, names: list[str]) -> np.ndarray:
    """Methods as rows, the first on top; returns their places on the y axis."""
    places = np.arange(len(names))
    axes.set_yticks(places, [textwrap.fill(method_name(name), 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    return places
