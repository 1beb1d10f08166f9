"""Pictures of why it works or not: task posteriors, relabelling, and the reward-swap test.

Every function raises MissingData, with one sentence, when the summary does not hold what it draws.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report.style import INK, key, legend, panels, styled
from pipeline.report.summary import SPLITS, MissingData, mean, methods, numbers
from pipeline.report.wording import method_name


@styled
def posteriors(summary: dict) -> Figure:
    """Means of the task posteriors in the plane of their two largest principal components."""
    firsts = {row["method"]: row for row in reversed(summary.get("posteriors") or []) if row.get("mean")}
    if not firsts:
        raise MissingData("No task posteriors were recorded.")
    features = {
        (split, task["index"]): np.atleast_1d(numbers(task.get("features")))
        for split in SPLITS
        for task in (summary.get("tasks") or {}).get(split) or []
    }
    width = max((len(value) for value in features.values()), default=0)
    columns = 2 if width == 2 else 1
    shown = [firsts[name] for name in methods(summary) if name in firsts]
    across = max(columns, min(2, len(shown)))
    figure, grid = panels(len(shown) * columns, across, 3.1)
    for row, record in enumerate(shown):
        place, share = _plane(numbers(record["mean"]))
        for column in range(columns):
            axes = grid[row * columns + column]
            missing = np.full(max(width, 1), math.nan)
            colour = [
                features.get(which, missing)[column] for which in zip(record["split"], record["task"], strict=True)
            ]
            points = _scatter(axes, place, np.array(record["split"]), np.array(colour))
            axes.set_title(f"{method_name(record['method'])}, seed {record['seed']}")
            axes.set_xlabel(f"component 1 ({share[0]:.0%} of variance)")
            axes.set_ylabel(f"component 2 ({share[1]:.0%})")
            if width:
                name = summary.get("parameter") or "task parameter"
                part = f", part {column + 1}" if width > 1 else ""
                figure.colorbar(points, ax=axes).set_label(f"{name}{part}", fontsize=8)
    marks = {"training task": key(INK, "", "o"), "unseen task": key(INK, "", "^")}
    legend(figure, marks)
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


def _scatter(axes: Axes, place: np.ndarray, split: np.ndarray, colour: np.ndarray):
    finite = colour[np.isfinite(colour)]
    limits = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    for name, marker in (("train", "o"), ("test", "^")):
        chosen = split == name
        points = axes.scatter(
            *place[chosen].T,
            c=colour[chosen],
            vmin=limits[0],
            vmax=limits[1],
            cmap="viridis",
            marker=marker,
            s=22 if name == "train" else 38,
            edgecolors="none" if name == "train" else INK,
            linewidths=0.6,
            alpha=0.85,
            plotnonfinite=True,
        )
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
    figure, (axes,) = panels(1, 1, 2.6)
    places = np.arange(len(rows))
    entries = {}
    for position, (field, (name, colour)) in enumerate(_ANSWERS.items()):
        bars = axes.bar(places + 0.27 * (position - 1), [row[field] for row in rows], 0.25, color=colour)
        axes.bar_label(bars, fmt="{:.0%}", fontsize=8, padding=1)
        entries[name] = Patch(color=colour)
    axes.plot(places, [row.get("own_identified", math.nan) for row in rows], "D", color=INK, markersize=5)
    entries["own context identified"] = key(INK, "", "D")
    if count := len((summary.get("tasks") or {}).get("train") or []):
        axes.axhline(1 / count, color=INK, linestyle="--", linewidth=1)
        entries[f"chance, 1/{count}"] = key(INK, "--", width=1)
    axes.set_xticks(places, [f"{method_name(row['method'])}\nseed {row['seed']}" for row in rows])
    empty = max(0.0, 3 - len(rows)) / 2  # keeps the bars of one or two runs from growing fat
    axes.set_xlim(-0.5 - empty, len(rows) - 0.5 + empty)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("share of (i, j) pairs")
    axes.grid(False, axis="x")
    legend(figure, entries)
    return figure
