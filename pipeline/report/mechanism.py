"""Figures of why it works or not: what the posterior follows and names, task posteriors, relabelling."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report.drawing import INK, MissingData, band, figure, key, legend, method_rows, panels, step_axis
from pipeline.report.wording import colours, method_name
from pipeline.results import Results, cube

KNOWS = "Does it know which task it is in?"
_ANSWERS = {
    "swap_follows_reward": ("the rewards' task", "#0072B2"),
    "swap_follows_state_action": ("the state-actions' task", "#D55E00"),
    "swap_other": ("some other task", "#bdbdbd"),
}


def _chance(axes: Axes, results: Results) -> dict:
    count = len(results.tasks("train"))
    axes.axhline(1 / count, color=INK, linestyle="--", linewidth=1)
    return {f"chance, 1/{count}": key(INK, "--", width=1)}


@figure("reward_swap", KNOWS, "Reward-swap test", needs="swap_")
def reward_swap(results: Results) -> Figure:
    """Where the posterior goes when task j's state-actions carry task i's rewards.

    The encoder sees state-actions of task j with the rewards of task i, and the nearest training posterior counts as
    its answer. A policy that identifies tasks by reward has a tall first bar and a low second one; the dashed line is
    guessing. Bars and diamonds: mean over seeds.
    """
    names = results.methods("swap_follows_reward")
    made, (axes,) = panels(1, 1, 2.6)
    places, entries, several = np.arange(len(names)), {}, False
    for position, (metric, (words, colour)) in enumerate(_ANSWERS.items()):
        middle = places + 0.27 * (position - 1)
        seeds = [results.rows(metric, method=name)["value"].to_numpy() for name in names]
        bars = axes.bar(middle, [values.mean() for values in seeds], 0.25, color=colour)
        entries[words] = Patch(color=colour)
        several = max(map(len, seeds)) > 1
        if not several:
            axes.bar_label(bars, fmt="{:.0%}", fontsize=8 if len(names) <= 5 else 6.5, padding=1)
        for place, values in zip(middle, seeds if several else (), strict=several):
            axes.plot(np.full(len(values), place), values, ".", color=INK, markersize=4, zorder=4)
    own = [results.rows("swap_own_identified", method=name)["value"].mean() for name in names]
    axes.plot(places, own, "D", color=INK, markersize=5)
    entries["own context identified"] = key(INK, "", "D")
    entries |= {"single seeds": key(INK, "", ".")} if several else {}
    entries |= _chance(axes, results)
    width = max(10, 84 // len(names))
    axes.set_xticks(places, [textwrap.fill(method_name(name), width, break_long_words=False) for name in names])
    empty = max(0.0, 3 - len(names)) / 2  # keeps the bars of one or two methods from growing fat
    axes.set_xlim(-0.5 - empty, len(names) - 0.5 + empty)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("share of (i, j) pairs")
    axes.grid(False, axis="x")
    legend(made, entries, columns=3)
    return made


@figure("identification", KNOWS, "Tasks identified from own rollouts", needs="identified")
def identification(results: Results) -> Figure:
    """How often the posterior of the policy's own rollouts names the training task, after each episode.

    Share of the training tasks that the posterior of the policy's own transitions names, by the nearest training
    posterior, after each episode. Line: mean over seeds; shaded: 95 % interval over seeds (of two: both). High with
    contexts from the batch (the diamonds above) but low here: the policy does not visit what would tell the tasks
    apart.
    """
    names, entries = results.methods("identified"), {}
    made, (axes,) = panels(1, 1, 2.7)
    for name in names:
        colour = colours(names)[name]
        (_, number), share = cube(results.rows("identified", method=name), "seed", "index")
        entries[method_name(name)] = band(axes, number, share[..., None], colour)
    entries |= _chance(axes, results)
    step_axis(axes)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("episodes in the context")
    axes.set_ylabel("training tasks identified")
    legend(made, entries)
    return made


@figure("foreign_contexts", KNOWS, "Right rewards from the wrong place", needs="foreign_")
def foreign_contexts(results: Results) -> Figure:
    """Return on unseen tasks with z from transitions of the nearest and of the farthest training task.

    z comes from transitions of another task that carry the unseen task's true rewards: of the nearest training task
    (filled) and of the farthest (open). A policy that reads the rewards does equally well with both; one that reads the
    places falls from the filled to the open mark.
    """
    names = results.methods("foreign_nearest")
    made, (axes,) = panels(1, 1, 0.42 * len(names) + 0.9)
    entries = {}
    for place, name in zip(method_rows(axes, names), names, strict=True):
        colour, means = colours(names)[name], []
        for source, face in (("nearest", colour), ("farthest", "white")):
            values = cube(results.rows(f"foreign_{source}", method=name), "seed", "task")[1].mean(axis=1)
            means.append(values.mean())
            mark: dict[str, Any] = {"color": colour, "markerfacecolor": face}
            axes.plot(means[-1], place, "o", markersize=8, markeredgewidth=1.6, zorder=3, **mark)
            entries[f"{source} task's transitions"] = key(INK, "", "o")
            entries[f"{source} task's transitions"].set_markerfacecolor(INK if face == colour else "white")
            if len(values) > 1:
                axes.plot(values, np.full(len(values), place + 0.28), "o", markersize=3.5, **mark)
                entries["small: single seeds"] = key(INK, "", ".")
        axes.plot(means, [place] * 2, color=colour, linewidth=1.6, zorder=2)
    axes.set_xlabel("return on unseen tasks, mean over tasks")
    legend(made, entries)
    return made


@figure("posteriors", KNOWS, "Task posteriors", needs="posterior_")
def posteriors(results: Results) -> Figure:
    """Means of the task posteriors in the plane of their two largest principal components.

    Each mark is the posterior mean of one context, in the plane of the two largest principal components (first seed of
    each method), coloured by the task's parameter. Good: one tight cluster a task, with neighbouring colours side by
    side and unseen tasks among them.
    """
    rows = results.table[results.table["metric"].str.startswith("posterior_")]
    names = results.methods("posterior_0")
    features = {
        (split, task["index"]): np.atleast_1d(np.array(task["features"], float))
        for split, tasks in results.run["tasks"].items()
        for task in tasks
    }
    width = len(next(iter(features.values())))
    parts = 2 if width == 2 else 1
    panel = [(part, name) for part in range(parts) for name in names]
    across = 2 if len(panel) <= 8 else 4
    made, grid = panels(len(panel), across, 3.1 if across == 2 else 2.2)
    for (part, name), axes in zip(panel, grid, strict=True):
        colour = {task: value[part] for task, value in features.items()}
        bar = made.colorbar(_scatter(axes, name, rows, colour, across > 2), ax=axes, pad=0.02)
        bar.set_label(results.run["parameter"] + (f", part {part + 1}" if width > 1 else ""), fontsize=7)
    legend(made, {"training task": key(INK, "", "o"), "unseen task": key(INK, "", "^")})
    return made


def plane(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[contexts, Z]` means to `[contexts, 2]` principal components and their shares of the variance."""
    left, size, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    place, share = np.zeros((len(means), 2)), np.zeros(2)
    kept = min(2, len(size))
    place[:, :kept] = left[:, :kept] * size[:kept]
    if size[0] > 0:
        share[:kept] = size[:kept] ** 2 / (size**2).sum()
    return place, share


def _scatter(
    axes: Axes, name: str, rows: pd.DataFrame, colour: dict[tuple[str, int], float], small: bool
) -> PathCollection:
    mine = rows[rows["method"] == name]
    seed = mine["seed"].min()
    means = mine[mine["seed"] == seed].pivot(index=["split", "task", "index"], columns="metric", values="value")
    place, share = plane(means.to_numpy())
    values = np.array([colour[split, task] for split, task, _ in means.index])
    split = means.index.get_level_values("split")
    for which, marker, size in (("train", "o", 22), ("test", "^", 38)):
        points = axes.scatter(
            *place[split == which].T,
            c=values[split == which],
            vmin=min(colour.values()),  # the same in all panels
            vmax=max(colour.values()),
            cmap="viridis",
            marker=marker,
            s=size / (2 if small else 1),
            edgecolors="none" if which == "train" else INK,
            linewidths=0.6,
            alpha=0.85,
        )
    axes.set_title(f"{method_name(name)}, seed {seed}", fontsize=8 if small else None)
    axes.set_xlabel(f"{share[0]:.0%} of variance" if small else f"component 1 ({share[0]:.0%} of variance)")
    axes.set_ylabel(f"{share[1]:.0%}" if small else f"component 2 ({share[1]:.0%})")
    return points


def _about_relabelling(results: Results) -> str:
    method = results.methods("relabel_share")[0]
    notes = results.run["relabelling"][method]
    return (
        f"Of {method_name(method)}. Row i, column j: transitions of task j relabelled by task i's ensemble. Left, the "
        f"share it is sure enough about (threshold {notes['threshold']}); then how wrong it is where it is sure, and "
        "everywhere. Dark error under a large share means confident and wrong; grey is the own task or no row. "
        f"{notes['error_note'] or ''}"
    )


@figure("relabelling", KNOWS, "Relabelling", needs="relabel_", note=_about_relabelling)
def relabelling(results: Results) -> Figure:
    """Which transitions of task j task i's ensemble may relabel, and how wrong its rewards are there."""
    titles = {"share": "Share eligible", "error_eligible": "Error, eligible rows", "error_all": "Error, all rows"}
    tasks, first = results.tasks("train"), next(iter(results.methods("relabel_share")), None)
    if first is None:
        raise MissingData("No relabelling tables were recorded.")
    tables = {
        name: cube(rows, "task", "index", task=tasks, index=tasks)[1]
        for name in titles
        if not (rows := results.rows(f"relabel_{name}", method=first)).empty
    }
    top = max((np.nanmax(table) for name, table in tables.items() if name != "share"), default=0) or 1.0
    made, grid = panels(len(tables), 3, 2.6 if len(tables) == 3 else 3.6)
    for (name, table), axes in zip(tables.items(), grid, strict=True):
        share, known = name == "share", table[np.isfinite(table)]
        axes.set_facecolor("#c8c8c8")
        shades = {"cmap": "Blues", "vmax": 1.0} if share else {"cmap": "Oranges", "vmax": top}
        image = axes.imshow(np.ma.masked_invalid(table), vmin=0, **shades)
        for (row, column), value in np.ndenumerate(table if len(table) <= 6 else table[:0]):
            if np.isfinite(value):
                ink = "white" if value > 0.6 * (1.0 if share else top) else INK
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink)
        average = (f"{known.mean():.0%}" if share else f"{known.mean():.3g}") if known.size else "unknown"
        axes.set_title(f"{titles[name]}\nmean {average}", fontsize=8.5)
        axes.set_xlabel("transitions of task j")
        axes.grid(False)
        axes.locator_params(integer=True, nbins=min(10, len(table)))
        made.colorbar(image, ax=axes, shrink=0.7, aspect=22, pad=0.03)
    grid[0].set_ylabel("relabelled for task i")
    return made
