"""Figures of a run: how well it went, what it learned from, and what it took."""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report import statistics
from pipeline.report.drawing import (
    CROWD,
    FAINT,
    INK,
    MissingData,
    band,
    figure,
    key,
    legend,
    levels,
    log_axis,
    panels,
    step_axis,
)
from pipeline.report.wording import colours, method_name, reference
from pipeline.results import SPLITS, Results, cube

WELL = "How well does the one policy do?"
SOURCE = "What it learned from"


def shown(results: Results, metric: str = "score") -> dict[str, list[str]]:
    """The splits with a metric, and the methods that have it there."""
    found = {split: results.methods(metric, split=split) for split in SPLITS}
    return {split: names for split, names in found.items() if names}


@figure("comparison", WELL, "Unseen tasks with intervals", needs="score")
def comparison(results: Results) -> Figure:
    """Each method at the last epoch and each reference on unseen tasks, and the first method against each of them.

    Left: interquartile mean over all seeds and unseen tasks at the last epoch; ticks: single seeds. Right: mean of the
    first method less that of the row, paired over the tasks; right of zero the first method is better. Lines: 95 %
    bootstrap intervals that resample whole seeds and tasks. Tasks differ more than methods, so the left intervals
    overlap where the right ones are clear.
    """
    names = results.methods("score", split="test")
    scores = {name: results.scores(name, "test")[1][:, -1] for name in names}
    scores |= {name: values[None] for name, values in results.references("test").items()}
    look = colours(names) | {name: reference(name).colour for name in scores if name not in names}
    made, (left, right) = panels(2, 2, 0.3 * len(scores) + 0.6, share="y")
    places = np.arange(len(scores))
    for place, (name, values) in enumerate(scores.items()):
        interval(left, place, statistics.pooled_iqm(values), look[name])
        if len(values) > 1:
            single = statistics.iqm(values, axis=1)
            left.plot(single, np.full(len(single), place + 0.28), "|", color=look[name], markersize=6)
        if place:
            interval(right, place, statistics.difference(scores[names[0]], values), look[name])
    right.axvline(0, color=INK, linewidth=0.8)
    words = [method_name(name) if name in names else reference(name).title for name in scores]
    left.set_yticks(places, [textwrap.fill(word, 32) for word in words])
    left.set_ylim(len(scores) - 0.5, -0.5)
    left.set_xlabel("return on unseen tasks, IQM")
    right.set_xlabel(f"{method_name(names[0])} less the row's mean")
    for axes in (left, right):
        axes.grid(False, axis="y")
    return made


def interval(axes: Axes, place: int, found: statistics.Estimate, colour: str) -> None:
    """An estimate as a point on its interval."""
    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2, zorder=3)
    axes.plot(found.value, place, "o", color=colour, markersize=6, zorder=4)


@figure("learning", WELL, "Return over distillation", needs="score")
def learning(results: Results) -> Figure:
    """Return on unseen and on training tasks over the distillation steps, beside the references.

    Thick line: mean over tasks and seeds; shaded: its 95 % bootstrap interval over whole seeds and tasks, with more
    than three methods over seeds alone (lowest to highest for two seeds, none for one). Thin lines: single tasks, where
    at most two methods share a panel; dotted: single seeds. Level lines are the references' means: a policy that adapts
    should end above the task-blind teacher.
    """
    splits = shown(results)
    made, grid = panels(len(splits), 1, 2.9, share="xy")
    entries = {}
    for (split, names), axes in zip(splits.items(), grid, strict=True):
        for name in names:
            steps, scores = results.scores(name, split)
            colour, crowd = colours(names)[name], len(names) > CROWD
            entries[method_name(name)] = band(axes, steps, scores, colour, crowd)
            if len(names) <= 2:  # more methods' single tasks would be an unreadable tangle
                axes.plot(steps, scores.mean(axis=0), color=colour, linewidth=0.6, alpha=0.45)
            if len(scores) > 1 and not crowd:
                axes.plot(steps, scores.mean(axis=2).T, color=colour, linewidth=1, linestyle=":")
        axes.set_title(f"Return on {SPLITS[split]}")
        axes.set_ylabel("return")
        entries |= levels(axes, {name: row for name, row in results.references(split).items() if name != "sac"})
    grid[-1].set_xlabel("distillation step")
    step_axis(grid[-1], ticks=8)
    legend(made, entries)
    return made


@figure("per_task", WELL, "Task by task", needs="score")
def per_task(results: Results) -> Figure:
    """Return on each task at the last evaluation, beside the references on that very task.

    Marks: mean over seeds, and small ones single seeds. Lines across a task: what each reference reaches there.
    """
    splits = shown(results)
    made, grid = panels(len(splits), 1, 2.9)
    entries = {}
    for (split, names), axes in zip(splits.items(), grid, strict=True):
        labels, places = results.labels(split), np.arange(len(results.tasks(split)))
        for position, name in enumerate(names):
            values, colour = results.scores(name, split)[1][:, -1], colours(names)[name]
            middle = places - 0.4 + 0.8 * (position + 0.5) / len(names)
            axes.plot(middle, values.mean(axis=0), "o", color=colour, markersize=6, zorder=3)
            axes.plot(middle, values.T, ".", color=colour, markersize=3)
            entries[method_name(name)] = key(colour, "", "o")
        for name, values in results.references(split).items():
            look = reference(name)
            axes.hlines(values, places - 0.45, places + 0.45, colors=look.colour, linestyles=look.dash, linewidth=1.4)
            entries[look.short] = key(look.colour, look.dash)
        slanted = len(labels) > 12 or sum(map(len, labels)) > 90
        axes.set_xticks(places, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set_title(f"{SPLITS[split].capitalize()}, last evaluation")
        axes.set_ylabel("return")
        axes.margins(x=0.01)
    legend(made, entries, columns=6)
    return made


@figure("episodes", WELL, "Does it adapt?", needs="episode_return")
def episodes(results: Results) -> Figure:
    """Return in each evaluation episode on a task: does the policy get better as its context grows?

    Mean over tasks and seeds, shaded as above. The first episode acts on a sample from the prior, later ones on all
    transitions so far: a curve that rises is adaptation, a flat one is not.
    """
    splits = shown(results, "episode_return")
    made, grid = panels(len(splits), 2, 2.7, share="y")
    skipped = results.run["config"].get("evaluate", {}).get("skipped_episodes", 0)
    entries = {}
    for (split, names), axes in zip(splits.items(), grid, strict=True):
        for name in names:
            rows = results.rows("episode_return", method=name, split=split)
            (_, number, _), values = cube(rows, "seed", "index", "task")
            entries[method_name(name)] = band(axes, number, values, colours(names)[name], len(names) > CROWD)
            axes.axvspan(skipped + 0.5, number[-1] + 0.5, color="#f4f4f4", zorder=0)
        axes.set_title(SPLITS[split].capitalize())
        axes.set_xlabel("evaluation episode")
        step_axis(axes)
    grid[0].set_ylabel("return")
    legend(made, entries | {"counted in the score": Patch(color="#ececec")})
    return made


def _task_curves(results: Results, method: str, x: str, other: str) -> tuple[Figure, dict, dict[int, Axes]]:
    """One panel a training task with a learner's curve, the others' in grey, and the level of one reference."""
    tasks, rows = results.tasks("train"), results.rows("return", method=method, split="train").sort_values("step")
    if rows.empty:
        raise MissingData(f"No learning curve of {method} was recorded.")
    made, grid = panels(len(tasks), 5, 1.6, share="xy")
    curves = {task: rows[rows["task"] == task] for task in tasks}
    colour, look = reference("sac" if method == "sac" else "own_teacher").colour, reference(other)
    known = results.references("train").get(other, np.full(len(tasks), math.nan))
    for (task, curve), axes, level, label in zip(curves.items(), grid, known, results.labels("train"), strict=True):
        for others in curves.values():
            axes.plot(others["step"], others["value"], color=FAINT, linewidth=0.6, zorder=1)
        axes.plot(curve["step"], curve["value"], color=colour, zorder=3)
        axes.axhline(level, color=look.colour, linestyle=look.dash, linewidth=1.1)
        axes.set_title(f"{task}: {label}", fontsize=8)
        axes.tick_params(labelsize=7)
        step_axis(axes, ticks=4)
    made.supxlabel(x, fontsize=9)
    made.supylabel("return", fontsize=9)
    entries = {"this task": key(colour), "all tasks": key(FAINT, width=1), look.title: key(look.colour, look.dash)}
    return made, entries, dict(zip(tasks, grid, strict=True))


@figure("collect_curves", SOURCE, "Data collection (SAC)", needs="return")
def collect_curves(results: Results) -> Figure:
    """Return of each task's SAC policy while it collects that task's batch.

    One panel a training task, the others in grey behind it. A task whose curve stays low gives a batch that no later
    stage can make up for.
    """
    made, entries, _ = _task_curves(results, "sac", "environment steps", "random")
    legend(made, entries)
    return made


@figure("teacher_curves", SOURCE, "Teachers", needs="selected")
def teacher_curves(results: Results) -> Figure:
    """Return of each task's teacher while it trains, with the checkpoint that was kept.

    One panel a training task; the dot is the checkpoint that became the teacher, the level that of the task's SAC
    policy that collected the batch. The dot is the highest of a noisy curve; the reference "own teacher" is the return
    of that checkpoint in fresh episodes.
    """
    made, entries, grid = _task_curves(results, "teacher", "training iteration", "sac")
    for row in results.rows("selected").itertuples():
        grid[int(row.task)].plot(row.step, row.value, "o", color="#D55E00", zorder=4)  # pyright: ignore[reportArgumentType]
    legend(made, entries | {"selected checkpoint": key("#D55E00", "", "o")})
    return made


_LOSSES = {
    "loss_q": "L_Q: distilled value",
    "loss_g": "L_G: candidate generator",
    "loss_xi": "L_ξ: perturbation",
    "loss_kl": "KL to the prior",
    "loss_triplet": "L_tri: triplet (linear scale)",
}
_NO_LOSS = ("eligible_share", "valid_pairs", "loss_triplet_valid")


@figure("distill_losses", SOURCE, "Distillation losses", needs="training/")
def distill_losses(results: Results) -> Figure:
    """Losses of the multi-task learners over their steps: one panel a loss, one line a seed (a method in a crowd).

    One line a seed (with more than three methods, the mean over seeds), logarithmic where all values are positive;
    learners of another kind have losses of their own. The triplet loss may stay near the margin though the method
    works: judge it by the return and the reward-swap test.
    """
    rows = results.table[results.table["metric"].str.startswith("training/") & results.table["task"].isna()]
    rows = rows.assign(metric=rows["metric"].str.removeprefix("training/"))
    found = list(rows["metric"].unique())
    names = [*(name for name in _LOSSES if name in found), *(n for n in found if n not in (*_LOSSES, *_NO_LOSS))]
    methods = [name for name in results.methods("score") if name in set(rows["method"])]
    if not names or not methods:
        raise MissingData("No losses of the distillation were recorded.")
    made, grid = panels(len(names), 3, 2.1, share="x")
    for name, axes in zip(names, grid, strict=True):
        mine = rows[rows["metric"] == name]
        for method, runs in mine.groupby("method"):
            lines = runs.pivot_table(index="step", columns="seed", values="value")
            lines = lines.mean(axis=1).to_frame() if len(methods) > CROWD else lines
            axes.plot(lines.index, lines, color=colours(methods)[str(method)], linewidth=1.2, alpha=0.85)
        if name != "loss_triplet" and mine["value"].min() > 0:
            log_axis(axes)
        axes.set_title(_LOSSES.get(name, name.replace("_", " ")))
        step_axis(axes, ticks=4)
    made.supxlabel("distillation step", fontsize=9)
    legend(made, {method_name(name): key(colours(methods)[name]) for name in methods})
    return made
