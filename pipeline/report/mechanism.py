"""Figures of why it works or not: what the posterior follows and names, task posteriors, relabelling."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import INK, band, figure, known, named_rows, panels, step_axis, wrapped
from pipeline.report.wording import MANY, colours, method_name
from pipeline.results import Results, cube

KNOWS = "Does it know which task it is in?"
_ANSWERS = {
    "swap_follows_reward": ("the rewards' task", "#0072B2"),
    "swap_follows_state_action": ("the state-actions' task", "#D55E00"),
    "swap_other": ("some other task", "#bdbdbd"),
}


def _chance(axes: Axes, results: Results) -> None:
    count = len(results.played("train"))
    axes.axhline(1 / count, color=INK, linestyle="--", linewidth=1, label=f"chance, 1/{count}")


@figure("reward_swap", KNOWS, "Reward-swap test")
def reward_swap(results: Results) -> Figure:
    """Where the posterior goes when task j's state-actions carry task i's rewards.

    The encoder sees 128 state-actions of task j with the rewards of task i, and the nearest training posterior counts
    as its answer; diamonds: 128 transitions of a task with their own rewards. A policy that identifies tasks by reward
    has a tall first bar and a low second one; the dashed line is guessing. Bars and diamonds: mean over seeds.
    """
    names = known(results, "swap_follows_reward")
    made, (axes,) = panels(1, 1, 2.6)
    places = np.arange(len(names))
    for position, (metric, (words, colour)) in enumerate(_ANSWERS.items()):
        seeds = [results.rows(metric, method=name)["value"] for name in names]
        middle = places + 0.27 * (position - 1)
        bars = axes.bar(middle, [values.mean() for values in seeds], 0.25, color=colour, label=words)
        if max(map(len, seeds)) == 1:
            axes.bar_label(bars, fmt="{:.0%}", fontsize=8 if len(names) <= 5 else 6.5, padding=1)
        else:
            for place, values in zip(middle, seeds, strict=True):
                axes.plot([place] * len(values), values, ".", color=INK, markersize=4, label="single seeds")
    own = [results.rows("swap_own_identified", method=name)["value"].mean() for name in names]
    axes.plot(places, own, "D", color=INK, markersize=5, label="own context identified")
    _chance(axes, results)
    width = max(10, 84 // len(names))
    axes.set_xticks(places, [textwrap.fill(method_name(name), width, break_long_words=False) for name in names])
    half = max(3, len(names)) / 2  # keeps the bars of one or two methods from growing fat
    axes.set(xlim=(places.mean() - half, places.mean() + half), ylim=(0, 1.08), ylabel="share of (i, j) pairs")
    axes.grid(False, axis="x")
    return made


@figure("identification", KNOWS, "Tasks identified from own rollouts")
def identification(results: Results) -> Figure:
    """How often the posterior of the policy's own rollouts names the training task, after each episode.

    Share of the training tasks that the posterior of the policy's own transitions names, by the nearest training
    posterior, after each episode. Line: mean over seeds; shaded: 95 % interval over seeds (of two: both). High with
    contexts from the batch (the diamonds above) but low here: the policy does not visit what would tell the tasks
    apart.
    """
    names = known(results, "identified")
    made, (axes,) = panels(1, 1, 2.7)
    for name in names:
        band(axes, *results.scores(name, "train", "identified", "index"), colours(names)[name], method_name(name))
    _chance(axes, results)
    step_axis(axes)
    axes.set(ylim=(0, 1.04), xlabel="episodes in the context", ylabel="training tasks identified")
    return made


_LOST = {
    "best_teacher": "best teacher of each task (tried out)",
    "own_teacher": "own teacher",
    "swapped_generator": "told; the teacher's generator",
    "swapped_perturbation": "told; the teacher's perturbation",
    "swapped_value": "told; the teacher's values",
    "told": "told: context from its batch",
    "score": "not told (its score)",
}


@figure("lost", KNOWS, "Where the return is lost")
def lost(results: Results) -> Figure:
    """Return on the training tasks, from the teachers down to the policy that has to find out the task.

    From above: the best teacher of each task and its own; the policy under a z from the task's own batch, with one
    network of its own teacher in place of its own; the same with its own networks; and its score under the protocol.
    What is lost between the teachers that it imitates and "told" is lost in distillation, and a network whose
    replacement brings it back has lost it; what is lost below "told" is lost in inference. Large marks: mean over
    seeds; small ones: single seeds.
    """
    names, references = known(results, "told"), results.references("train")
    teachers = {name: values.mean() for name, values in references.items() if name.partition(" (")[0] in _LOST}
    shown = {row for row in _LOST if row in references or results.methods(row, split="train")}
    rows = {row: words for row, words in _LOST.items() if row in shown}
    made, (axes,) = panels(1, 1, 0.33 * len(rows) + 0.5)
    places = dict(zip(rows, named_rows(axes, list(rows.values())), strict=True))
    for name, mean in teachers.items():
        row, _, kind = name.partition(" (")
        axes.plot(mean, places[row], "s", color=INK, markersize=7)
        beside = {"xytext": (0, -13 if kind else 6), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(kind.strip(")") or results.run["config"].get("teacher", ""), (mean, places[row]), **beside)
    for position, name in enumerate(names):
        colour, shift = colours(names)[name], 0.5 * ((position + 0.5) / len(names) - 0.5)
        for row in [row for row in rows if name in results.methods(row, split="train")]:
            found = results.rows(row, method=name, split="train")
            seeds = found[found["step"].isna() | (found["step"] == found["step"].max())].groupby("seed")["value"].mean()
            label = method_name(name) if row == "told" else None
            axes.plot(seeds.mean(), places[row] + shift, "o", color=colour, markersize=7, label=label)
            axes.plot(seeds, [places[row] + shift] * len(seeds), ".", color=colour, markersize=4)
    axes.set_xlabel("return on training tasks, mean over tasks")
    return made


@figure("foreign_contexts", KNOWS, "Right rewards from the wrong place")
def foreign_contexts(results: Results) -> Figure:
    """Return on unseen tasks with z from transitions of the nearest and of the farthest training task.

    z comes from transitions of another task that carry the unseen task's true rewards: of the nearest training task
    (filled) and of the farthest (open); small marks are single seeds. A policy that reads the rewards does equally well
    with both; one that reads the places falls from the filled to the open mark.
    """
    names = known(results, "foreign_nearest")
    made, (axes,) = panels(1, 1, 0.42 * len(names) + 0.9)
    for place, name in zip(named_rows(axes, [method_name(name) for name in names]), names, strict=True):
        colour, means = colours(names)[name], []
        for source, face in (("nearest", colour), ("farthest", "white")):
            seeds = results.rows(f"foreign_{source}", method=name).groupby("seed")["value"].mean()
            means.append(seeds.mean())
            mark: dict = {"color": colour, "markerfacecolor": face}
            axes.plot(means[-1], place, "o", markersize=8, markeredgewidth=1.6, zorder=3, **mark)
            if len(seeds) > 1:
                axes.plot(seeds, [place + 0.28] * len(seeds), "o", markersize=3.5, **mark)
        axes.plot(means, [place] * 2, color=colour, linewidth=1.6, zorder=2)
    for source, face in (("nearest", INK), ("farthest", "white")):
        axes.plot([], [], "o", color=INK, markerfacecolor=face, label=f"{source} task's transitions")
    axes.set_xlabel("return on unseen tasks, mean over tasks")
    return made


@figure("posteriors", KNOWS, "Task posteriors")
def posteriors(results: Results) -> Figure:
    """Means of the task posteriors in the plane of their two largest principal components.

    Each mark is the posterior mean of one context, in the plane of the two largest principal components (first seed of
    each method), coloured by the task's parameter. Good: one tight cluster a task, with neighbouring colours side by
    side and unseen tasks among them.
    """
    rows = results.table[results.table["metric"].str.startswith("posterior_")]
    tasks = [(split, task) for split, found in results.run["tasks"].items() for task in found]
    features = {(split, task["index"]): np.atleast_1d(task["features"]) for split, task in tasks}
    width = len(next(iter(features.values())))
    panel = [(part, name) for part in range(2 if width == 2 else 1) for name in known(results, "posterior_0")]
    made, grid = panels(len(panel), 4, 2.2)
    for (part, name), axes in zip(panel, grid, strict=True):
        colour = {task: value[part] for task, value in features.items()}
        scale = {"vmin": min(colour.values()), "vmax": max(colour.values()), "cmap": "viridis"}  # one for all panels
        mine = rows[rows["method"] == name]
        mine = mine[mine["seed"] == mine["seed"].min()]
        means = mine.pivot(index=["split", "task", "index"], columns="metric", values="value")
        place, share = plane(means.to_numpy())
        values = np.array([colour[split, task] for split, task, _ in means.index])
        for split, marker, size, edge in (("train", "o", 14, "none"), ("test", "^", 24, INK)):
            at = means.index.get_level_values("split") == split
            mark = {"marker": marker, "s": size, "edgecolors": edge, "linewidths": 0.6, "alpha": 0.85}
            points = axes.scatter(*place[at].T, c=values[at], **scale, **mark)
        bar = made.colorbar(points, ax=axes, pad=0.02)
        bar.set_label(results.run["parameter"] + (f", part {part + 1}" if width > 1 else ""), fontsize=7)
        axes.set_title(wrapped(f"{method_name(name)}, seed {mine['seed'].min()}", 30), fontsize=8)
        axes.set(xlabel=f"{share[0]:.0%} of variance", ylabel=f"{share[1]:.0%}")
    for label, marker in (("training task", "o"), ("unseen task", "^")):
        grid[0].plot([], [], marker, color=INK, markersize=5, label=label)
    return made


def plane(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[contexts, Z]` means to `[contexts, 2]` principal components and their shares of the variance `[2]`."""
    left, size, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    place = np.pad(left * size, ((0, 0), (0, 2)))[:, :2]  # one context or dimension has one component
    return place, np.pad(size**2 / max((size**2).sum(), 1e-300), (0, 2))[:2]


_MATRICES = {
    "relabel_share": ("Share eligible", "Blues", "{:.0%}"),
    "relabel_error_eligible": ("Error, eligible rows", "Oranges", "{:.3g}"),
    "relabel_error_all": ("Error, all rows", "Oranges", "{:.3g}"),
}


def _pairs(found: dict[str, np.ndarray]) -> Figure:
    """Histograms over pairs of tasks."""
    made, grid = panels(len(found), 3, 2.4)
    for (metric, values), axes in zip(found.items(), grid, strict=True):
        title, _, written = _MATRICES[metric]
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        axes.hist(values, bins=40, color="#0072B2")
        middles = " to ".join(written.format(value) for value in (low, high))
        axes.set_title(f"{title}\nmedian {written.format(middle)}, nine of ten {middles}", fontsize=8.5)
    grid[0].set_ylabel("pairs of tasks")
    return made


@figure("relabelling", KNOWS, "Relabelling")
def relabelling(results: Results) -> Figure:
    """Which transitions of task j task i's ensemble may relabel, and how wrong its rewards are there.

    Of the first method that relabels. Row i, column j: transitions of task j relabelled by task i's ensemble. Left, the
    share it is sure enough about; then how wrong it is where it is sure, and everywhere. Dark error under a large share
    means confident and wrong; grey is the own task or no row. Of many tasks: how many pairs have what share and error.
    """
    tasks, first = results.tasks("train"), known(results, "relabel_share")[0]
    found = {metric: rows for metric in _MATRICES if len(rows := results.rows(metric, method=first))}
    if len(tasks) > MANY:
        return _pairs({metric: rows["value"].to_numpy() for metric, rows in found.items()})
    tables = {metric: cube(rows, "task", "index", task=tasks, index=tasks)[1] for metric, rows in found.items()}
    errors = [np.nanmax(table) for metric, table in tables.items() if metric != "relabel_share"]
    made, grid = panels(len(tables), 3, 2.6 if len(tables) == 3 else 3.6)
    for (metric, table), axes in zip(tables.items(), grid, strict=True):
        title, shades, written = _MATRICES[metric]
        top = 1.0 if metric == "relabel_share" else max(errors) or 1.0
        axes.set_facecolor("#c8c8c8")
        image = axes.imshow(np.ma.masked_invalid(table), vmin=0, vmax=top, cmap=shades)
        for (row, column), value in np.ndenumerate(table if len(table) <= 6 else table[:0]):
            if np.isfinite(value):
                ink = "white" if value > 0.6 * top else INK
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_title(f"{title}\nmean {written.format(np.nanmean(table))}", fontsize=8.5)
        axes.set_xlabel("transitions of task j")
        axes.grid(False)
        axes.locator_params(integer=True, nbins=min(10, len(table)))
        made.colorbar(image, ax=axes, shrink=0.7, aspect=22, pad=0.03)
    grid[0].set_ylabel("relabelled for task i")
    return made
