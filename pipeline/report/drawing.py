"""What all figures share: the registry, the writer of pictures, panels, lines with bands, named levels."""

import base64
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pipeline.report import statistics
from pipeline.report.wording import method_name, reference
from pipeline.results import METRICS, SPLITS, Results

WIDTH = 8.5  # inches: a page's text width, so that type keeps its size on paper
INK = "#333333"
CROWD = 3  # more methods than this in one panel: bands over seeds alone, no lines of single tasks or seeds
_STYLE = Path(__file__).with_name("report.mplstyle")


class MissingData(ValueError):
    """The results do not hold what a figure needs; the message says what, in one sentence."""


@dataclass(frozen=True)
class Entry:
    """A figure: where it stands, its words, and how it is drawn."""

    name: str
    section: str
    title: str
    draw: Callable[[Results], Figure]
    note: str | None
    """What its caption says besides the docstring of `draw`."""
    sweep: str
    """The sweep that the figure is of, for those of the paper."""


@dataclass(frozen=True)
class Picture:
    """What became of a figure: its caption and its file, or the sentence that says what is missing."""

    entry: Entry
    text: str
    file: Path | None = None

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode() if self.file else ""


FIGURES: dict[str, Entry] = {}
"""Every figure by name, in the order in which a report shows them."""


def figure(name: str, section: str, title: str, note: str | None = None, sweep: str = "") -> Callable:
    """Register a function of the results as a figure, whose caption is its docstring and note; see `Entry`.

    Whatever the function gives a label stands in one legend above all panels.
    """

    def register(draw: Callable[[Results], Figure]) -> Callable[[Results], Figure]:
        FIGURES[name] = Entry(name, section, title, draw, note, sweep)
        return draw

    return register


def draw(name: str, results: Results) -> Figure:
    """The figure, in the report's style; raises MissingData where the results do not hold what it needs."""
    return styled(lambda: FIGURES[name].draw(results))


def styled(drawn: Callable[[], Figure]) -> Figure:
    """What is drawn in the report's style, with one legend above all panels."""
    with rc_context(fname=_STYLE):
        made = drawn()
        labelled = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in made.axes]
        handles = {label: handle for one in labelled for handle, label in one}
        if handles:
            # 130 letters, with a line's sample for each label, fill a page's width.
            columns = max(1, int(130 * made.get_figwidth() / WIDTH) // (max(map(len, handles)) + 9))
            made.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(columns, len(handles)))
    return made


def picture(name: str, results: Results, out: Path) -> Picture:
    """Draw a figure to `<name>.png` in `out`; one that lacks its data says so, and no file of an earlier call stays."""
    entry, file = FIGURES[name], out / f"{name}.png"
    file.unlink(missing_ok=True)
    try:
        made = draw(name, results)
    except MissingData as missing:
        return Picture(entry, f"Left out: {missing}")
    write_png(made, file)
    return Picture(entry, " ".join(f"{entry.draw.__doc__} {entry.note or ''}".split()), file)


def write_png(made: Figure, file: Path) -> None:
    """Write a figure with the dots of a report."""
    made.set_dpi(150)
    if (layout := made.get_layout_engine()) is not None:  # `savefig` draws everything twice for the same pixels
        layout.execute(made)
        made.set_layout_engine("none")
    FigureCanvasAgg(made).print_png(file)


def known(results: Results, metric: str, wanted: Sequence[str] = (), **where: str) -> list[str]:
    """The methods that have a metric, of those `wanted` in their order; raises MissingData where there is none."""
    found = results.methods(metric, **where)
    names = [name for name in wanted or found if name in found]
    if not names:
        words = next(words for start, words in METRICS.items() if metric.startswith(start)).partition(" (")[0]
        whose = ", ".join(map(method_name, wanted)) or "any method"
        raise MissingData(f"Of {whose} no numbers were recorded: {words}.")
    return names


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


def split_panels(
    results: Results, metric: str, columns: int, height: float, share: str = ""
) -> tuple[Figure, list[tuple[Axes, str, list[str]]]]:
    """One panel for each split that has a metric, with the split and the methods that have it there."""
    known(results, metric)
    found = {split: names for split in SPLITS if (names := results.methods(metric, split=split))}
    made, grid = panels(len(found), columns, height, share)
    return made, [(axes, *split) for axes, split in zip(grid, found.items(), strict=True)]


def step_axis(axes: Axes, ticks: int = 6) -> None:
    """A few ticks of the x axis, at whole numbers only, thousands written as K."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}K" if abs(x) >= 1000 else f"{x:g}")


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers, also when it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}" if high < 10 * low else NullFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)) if high > 2 * low else MaxNLocator(4))


def band(axes: Axes, x: np.ndarray, scores: np.ndarray, colour: str, label: str, crowd: bool = True) -> None:
    """Mean over seeds and tasks of `[seeds, x, tasks]` as a line with its 95 % interval.

    The interval is over whole seeds and tasks; in a crowd over seeds alone, and left out for a single seed.
    """
    mean = scores.mean(axis=(0, 2))
    axes.plot(x, mean, color=colour, linewidth=2, marker="o", markersize=3, zorder=3, label=label)
    if not crowd or len(scores) > 1:
        low, high = statistics.seed_interval(scores.mean(axis=2)) if crowd else statistics.mean_interval(scores)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def seeds_of(name: str, scores: np.ndarray) -> str:
    """A name with the number of its seeds, for the legend."""
    return f"{name} ({len(scores)} seed{'s' * (len(scores) > 1)})"


def levels(axes: Axes, references: dict[str, np.ndarray]) -> None:
    """Horizontal lines at the mean over tasks of each reference."""
    for name, values in references.items():
        look = reference(name)
        style = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.2, "zorder": 1.5}
        axes.axhline(values.mean(), label=look.short, **style)


def wrapped(name: str, width: int = 32) -> str:
    """A name on lines of at most `width` characters, so many that it fits beside or above its panel."""
    return textwrap.fill(name, width)


def named_rows(axes: Axes, names: Sequence[str]) -> np.ndarray:
    """Methods and references as rows, the first on top; returns their places on the y axis."""
    places = np.arange(len(names))
    axes.set_yticks(places, [wrapped(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    return places
