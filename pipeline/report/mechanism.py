"""Pictures of why it works or not: what the posterior follows and names, task posteriors, relabelling.

Every function raises MissingData, with one sentence, when the summary does not hold what it draws.
"""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report.style import INK, WIDTH, key, legend, method_colours, method_rows, panels, step_axis, styled
from pipeline.report.summary import SPLITS, MissingData, mean, methods, numbers, of_method
from pipeline.report.wording import method_name


@styled
def posteriors(summary: dict) -> Figure:
    """Means of the task posteriors in the plane of their two largest principal components."""
    firsts = {row["method"]: row for row in reversed(summary.get("posteriors") or []) if row.get("mean")}
    if not firsts:
        raise MissingData("No task posteriors were recorded.")
    features = {
        (split, task["index"]): np.atleast_1d(numbers(task["features"]))
        for split in SPLITS
        for task in (summary.get("tasks") or {}).get(split) or []
        if task.get("features") is not None
    }
    width = max((len(value) for value in features.values()), default=0)
    parts = 2 if width == 2 else 1
    shown = [firsts[name] for name in methods(summary) if name in firsts]
    beside = len(shown) == 1  # the parts of the parameter stand side by side, otherwise one below the other
    across = min(len(shown), 2 if len(shown) <= 4 else 4)
    rows = math.ceil(len(shown) / across)
    height = rows * (3.1 if across <= 2 else 2.2) * (1 if beside else parts)
    figure = Figure(figsize=(WIDTH, height + 0.4), layout="constrained")
    blocks = figure.subfigures(1 if beside else parts, parts if beside else 1, squeeze=False)
    for part, block in enumerate(np.ravel(blocks)):
        grid = list(np.ravel(block.subplots(rows, across, squeeze=False)))
        for spare in grid[len(shown) :]:
            spare.remove()
        colours = {task: value[part] for task, value in features.items()}
        points = [_scatter(*pair, colours, small=across > 2) for pair in zip(grid, shown, strict=False)]
        if width:
            name = summary.get("parameter") or "task parameter"
            bar = block.colorbar(points[0], ax=grid[: len(shown)], aspect=25 * rows, pad=0.02)
            bar.set_label(f"{name}, part {part + 1}" if width > 1 else name, fontsize=8)
    legend(figure, {"training task": key(INK, "", "o"), "unseen task": key(INK, "", "^")})
    return figure


def _plane(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[contexts, Z]` means to `[contexts, 2]` principal components and their shares of the variance."""
    left, size, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    place, share = np.zeros((len(means), 2)), np.zeros(2)
    kept = min(2, len(size))
    place[:, :kept] = left[:, :kept] * size[:kept]
    if size[0] > 0:
        share[:kept] = size[:kept] ** 2 / (size**2).sum()
    return place, share


def _scatter(axes: Axes, record: dict, colours: dict[tuple[str, int], float], small: bool) -> PathCollection:
    place, share = _plane(numbers(record["mean"]))
    split = np.array(record["split"])
    colour = np.array([colours.get(which, math.nan) for which in zip(record["split"], record["task"], strict=True)])
    limits = (min(colours.values(), default=0.0), max(colours.values(), default=1.0))  # the same in all panels
    for name, marker in (("train", "o"), ("test", "^")):
        chosen = split == name
        points = axes.scatter(
            *place[chosen].T,
            c=colour[chosen],
            vmin=limits[0],
            vmax=limits[1],
            cmap="viridis",
            marker=marker,
            s=(22 if name == "train" else 38) / (2 if small else 1),
            edgecolors="none" if name == "train" else INK,
            linewidths=0.6,
            alpha=0.85,
            plotnonfinite=True,
        )
    axes.set_title(f"{method_name(record['method'])}, seed {record['seed']}", fontsize=8 if small else None)
    axes.set_xlabel(f"{share[0]:.0%} of variance" if small else f"component 1 ({share[0]:.0%} of variance)")
    axes.set_ylabel(f"{share[1]:.0%}" if small else f"component 2 ({share[1]:.0%})")
    return points


@styled
def relabelling(summary: dict) -> Figure:
    """Which transitions of task j task i's ensemble may relabel, and how wrong its rewards are there."""
    found = summary.get("relabel") or {}
    titles = {
        "share": "Share eligible",
        "error_eligible": "Error, eligible rows",
        "error_all": "Error, all rows",
    }
    shown = {name: numbers(found[name]) for name in titles if found.get(name)}
    if not shown:
        raise MissingData("No relabelling tables were recorded.")
    errors = [mean([np.nanmax(table)]) for name, table in shown.items() if name != "share" and np.any(table > 0)]
    figure, grid = panels(len(shown), 3, 2.6 if len(shown) == 3 else 3.6)
    for (name, table), axes in zip(shown.items(), grid, strict=True):
        share = name == "share"
        top = 1.0 if share else max(errors, default=0) or 1.0
        axes.set_facecolor("#c8c8c8")
        image = axes.imshow(np.ma.masked_invalid(table), cmap="Blues" if share else "Oranges", vmin=0, vmax=top)
        if len(table) <= 6:
            _cell_values(axes, table, top)
        average = f"{mean(table):.0%}" if share else f"{mean(table):.3g}"
        axes.set_title(f"{titles[name]}\nmean {average}", fontsize=8.5)
        axes.set_xlabel("transitions of task j")
        axes.grid(False)
        axes.locator_params(integer=True, nbins=min(10, len(table)))
        figure.colorbar(image, ax=axes, shrink=0.7, aspect=22, pad=0.03)
    grid[0].set_ylabel("relabelled for task i")
    return figure


def _cell_values(axes: Axes, table: np.ndarray, top: float) -> None:
    for (row, column), value in np.ndenumerate(table):
        if math.isfinite(value):
            ink = "white" if value > 0.6 * top else INK
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7.5, color=ink)


_ANSWERS = {
    "follows_reward": ("the rewards' task", "#0072B2"),
    "follows_state_action": ("the state-actions' task", "#D55E00"),
    "other": ("some other task", "#bdbdbd"),
}


@styled
def reward_swap(summary: dict) -> Figure:
    """Where the posterior goes when task j's state-actions carry task i's rewards."""
    rows = summary.get("reward_swap")
    if not rows:
        raise MissingData("The reward-swap test was not run.")
    names = [name for name in methods(summary) if of_method(summary, "reward_swap", name)]
    table = {  # [methods] lists of one value a seed
        field: [numbers([row.get(field) for row in of_method(summary, "reward_swap", name)]) for name in names]
        for field in [*_ANSWERS, "own_identified"]
    }
    several = len(rows) > len(names)
    figure, (axes,) = panels(1, 1, 2.6)
    places = np.arange(len(names))
    entries = {}
    for position, (field, (name, colour)) in enumerate(_ANSWERS.items()):
        middle = places + 0.27 * (position - 1)
        bars = axes.bar(middle, [mean(seeds) for seeds in table[field]], 0.25, color=colour)
        if several:
            _seed_dots(axes, middle, table[field])
        else:
            axes.bar_label(bars, fmt="{:.0%}", fontsize=8 if len(names) <= 5 else 6.5, padding=1)
        entries[name] = Patch(color=colour)
    axes.plot(places, [mean(seeds) for seeds in table["own_identified"]], "D", color=INK, markersize=5)
    entries["own context identified"] = key(INK, "", "D")
    if several:
        entries["single seeds"] = key(INK, "", ".")
    if count := len((summary.get("tasks") or {}).get("train") or []):
        axes.axhline(1 / count, color=INK, linestyle="--", linewidth=1)
        entries[f"chance, 1/{count}"] = key(INK, "--", width=1)
    axes.set_xticks(places, [_under_bars(summary, name, len(names)) for name in names])
    empty = max(0.0, 3 - len(names)) / 2  # keeps the bars of one or two methods from growing fat
    axes.set_xlim(-0.5 - empty, len(names) - 0.5 + empty)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("share of (i, j) pairs")
    axes.grid(False, axis="x")
    legend(figure, entries, columns=3 if several else 5)
    return figure


def _seed_dots(axes: Axes, middle: np.ndarray, seeds: list[np.ndarray]) -> None:
    for x, values in zip(middle, seeds, strict=True):
        axes.plot(np.full(len(values), x), values, ".", color=INK, markersize=4, zorder=4)


def _under_bars(summary: dict, name: str, count: int) -> str:
    runs = of_method(summary, "reward_swap", name)
    seeds = f"seed {runs[0]['seed']}" if len(runs) == 1 else f"{len(runs)} seeds"
    return f"{textwrap.fill(method_name(name), max(10, 84 // count), break_long_words=False)}\n{seeds}"


@styled
def identification(summary: dict) -> Figure:
    """How often the posterior of the policy's own rollouts names the training task, after each episode."""
    rows = [row for row in summary.get("probes") or [] if row.get("identification")]
    if not rows:
        raise MissingData("The identification of tasks from own rollouts was not probed.")
    colours, entries = method_colours(summary), {}
    figure, (axes,) = panels(1, 1, 2.7)
    for name in methods(summary):
        seeds = numbers([row["identification"] for row in rows if row["method"] == name])  # [seeds, episodes]
        if seeds.size:
            number = np.arange(1, seeds.shape[1] + 1)
            axes.plot(number, seeds.mean(axis=0), color=colours[name], linewidth=2, marker="o", markersize=4, zorder=3)
            axes.fill_between(
                number, seeds.min(axis=0), seeds.max(axis=0), color=colours[name], alpha=0.13, linewidth=0
            )
            entries[method_name(name)] = key(colours[name], marker="o", width=2)
    if count := len((summary.get("tasks") or {}).get("train") or []):
        axes.axhline(1 / count, color=INK, linestyle="--", linewidth=1)
        entries[f"chance, 1/{count}"] = key(INK, "--", width=1)
    step_axis(axes)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("episodes in the context")
    axes.set_ylabel("training tasks identified")
    legend(figure, entries)
    return figure


_SOURCES = {"nearest": "full", "farthest": "none"}


@styled
def foreign_contexts(summary: dict) -> Figure:
    """Return on unseen tasks with z from transitions of the nearest and of the farthest training task."""
    rows = [row for row in summary.get("probes") or [] if row.get("foreign_contexts")]
    if not rows:
        raise MissingData("The policy was not tried with contexts from other tasks.")
    names = [name for name in methods(summary) if any(row["method"] == name for row in rows)]
    colours, several = method_colours(summary), len(rows) > len(names)
    figure, (axes,) = panels(1, 1, 0.42 * len(names) + 0.9)
    for place, name in zip(method_rows(axes, names), names, strict=True):
        found = [row["foreign_contexts"] for row in rows if row["method"] == name]
        seeds = {source: [mean(row.get(source)) for row in found] for source in _SOURCES}
        axes.plot([mean(seeds[source]) for source in _SOURCES], [place] * 2, color=colours[name], linewidth=1.6)
        for source, fill in _SOURCES.items():
            face = {"markerfacecolor": colours[name] if fill == "full" else "white", "markeredgewidth": 1.6}
            axes.plot(mean(seeds[source]), place, "o", color=colours[name], markersize=8, zorder=3, **face)
            if several:
                below = np.full(len(found), place + 0.28)
                axes.plot(seeds[source], below, "o", color=colours[name], markersize=3.5, fillstyle=fill)
    marks = {f"{source} task's transitions": key(INK, "", "o") for source in _SOURCES}
    marks["farthest task's transitions"].set_fillstyle("none")
    if several:
        marks["small: single seeds"] = key(INK, "", ".")
    axes.set_xlabel("return on unseen tasks, mean over tasks")
    legend(figure, marks)
    return figure
