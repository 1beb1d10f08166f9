"""What all figures share: the registry, the writer of pictures, one look, panels, lines with bands, named levels."""

import base64
import io
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.typing import LineStyleType

from pipeline.report import statistics
from pipeline.report.wording import method_name, reference
from pipeline.results import METRICS, Results

WIDTH = 8.5  # inches: a page's text width, so that type keeps its size on paper
INK = "#333333"
FAINT = "#d9d9d9"
CROWD = 3  # more methods than this in one panel: bands over seeds alone, no lines of single tasks or seeds
_DOTS_PER_INCH = 150
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


class MissingData(ValueError):
    """The results do not hold what a figure needs; the message says what, in one sentence."""


@dataclass(frozen=True)
class Entry:
    """A figure: where it stands, its words, what it needs, and how it is drawn."""

    name: str
    section: str
    title: str
    needs: str
    """The metric that it cannot do without, by its name or beginning in `METRICS`; "" for none."""
    note: str | Callable[[Results], str]
    """What its caption says besides the docstring of `draw`."""
    sweep: str
    """The sweep that the figure is of, for those of the paper."""
    draw: Callable[[Results], Figure]

    def caption(self, results: Results) -> str:
        """What is to be seen, and how to read it."""
        note = self.note if isinstance(self.note, str) else self.note(results)
        return " ".join(f"{self.draw.__doc__} {note}".split())


@dataclass(frozen=True)
class Picture:
    """What became of a figure: its file and its bytes, or the sentence that says what is missing."""

    entry: Entry
    text: str
    file: Path | None = None
    source: str = ""
    """The picture as a data URL."""


FIGURES: dict[str, Entry] = {}
"""Every figure by name, in the order in which a report shows them."""


def figure(
    name: str,
    section: str,
    title: str,
    needs: str = "",
    note: str | Callable[[Results], str] = "",
    sweep: str = "",
) -> Callable[[Callable[[Results], Figure]], Callable[[Results], Figure]]:
    """Register a function of the results as a figure, whose caption is its docstring and `note`."""

    def register(draw: Callable[[Results], Figure]) -> Callable[[Results], Figure]:
        FIGURES[name] = Entry(name, section, title, needs, note, sweep, draw)
        return draw

    return register


def draw(name: str, results: Results) -> Figure:
    """The figure, with the report's settings; raises MissingData where the results do not hold what it needs."""
    entry = FIGURES[name]
    if entry.needs and not results.table["metric"].str.startswith(entry.needs).any():
        raise MissingData(f"{METRICS[entry.needs].partition(' (')[0]}: none recorded.")
    with rc_context(_RC):
        return entry.draw(results)


def picture(name: str, results: Results, out: Path) -> Picture:
    """Draw a figure to `<name>.png` in `out`; one that lacks its data says so, and leaves no file of an earlier "
    "call."""
    entry, file = FIGURES[name], out / f"{name}.png"
    try:
        buffer = io.BytesIO()
        draw(name, results).savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    except MissingData as missing:
        file.unlink(missing_ok=True)
        return Picture(entry, f"Left out: {missing}")
    file.write_bytes(buffer.getvalue())
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(entry, entry.caption(results), file, source)


def panels(count: int, columns: int, height: float, share: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of the report's width with `count` axes, filled row by row; `height` is that of one row, `share` names
    the shared axes."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    made = Figure(figsize=(WIDTH, rows * height + 0.4), layout="constrained")
    grid = list(made.subplots(rows, columns, squeeze=False, sharex="x" in share, sharey="y" in share).ravel())
    for spare in grid[count:]:
        spare.remove()
    for above_spare in grid[max(0, count - columns) : count]:
        above_spare.tick_params(labelbottom=True)
    return made, grid[:count]


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


def legend(made: Figure, entries: dict, columns: int = 5) -> None:
    """One legend above all panels."""
    if entries:
        made.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=min(len(entries), columns))


def key(colour: str, dash: LineStyleType = "-", marker: str = "", width: float = 1.6) -> Line2D:
    """A legend entry."""
    return Line2D([], [], color=colour, linestyle=dash, marker=marker, linewidth=width, markersize=5)


def band(axes: Axes, x: np.ndarray, scores: np.ndarray, colour: str, crowd: bool = True) -> Line2D:
    """Mean over seeds and tasks of `[seeds, x, tasks]` as a line with its 95 % interval; returns its legend entry.

    The interval is over whole seeds and tasks; in a crowd over seeds alone, and left out for a single seed.
    """
    axes.plot(x, scores.mean(axis=(0, 2)), color=colour, linewidth=2, zorder=3, marker="o", markersize=3)
    if not crowd or len(scores) > 1:
        low, high = statistics.seed_interval(scores.mean(axis=2)) if crowd else statistics.mean_interval(scores)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return key(colour, marker="o", width=2)


def levels(axes: Axes, references: dict[str, np.ndarray]) -> dict[str, Line2D]:
    """Horizontal lines at the mean over tasks of each reference; returns their legend entries."""
    looks = {name: reference(name) for name in references}
    for name, look in looks.items():
        axes.axhline(references[name].mean(), color=look.colour, linestyle=look.dash, linewidth=1.2, zorder=1.5)
    return {look.short: key(look.colour, look.dash, width=1.2) for look in looks.values()}


def method_rows(axes: Axes, names: list[str]) -> np.ndarray:
    """Methods as rows, the first on top; returns their places on the y axis."""
    places = np.arange(len(names))
    axes.set_yticks(places, [textwrap.fill(method_name(name), 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    return places
