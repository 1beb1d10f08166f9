"""Figures of how well the one policy of a run does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import drawing, statistics
from pipeline.report.drawing import CROWD, INK, band, figure, known, levels, named_rows, panels, split_panels, step_axis
from pipeline.report.wording import MANY, colours, method_name, reference
from pipeline.results import SPLITS, Results

WELL = "How well does the one policy do?"


@figure("comparison", WELL, "Unseen tasks with intervals")
def comparison(results: Results) -> Figure:
    """Each method at the last epoch and each reference on unseen tasks, and the first method against each of them.

    Left: interquartile mean over all seeds and unseen tasks at the last epoch; ticks: single seeds. Right: mean of the
    first method less that of the row, paired over the tasks; right of zero the first method is better. Lines: 95 %
    bootstrap intervals that resample whole seeds and tasks. Tasks differ more than methods, so the left intervals
    overlap where the right ones are clear.
    """
    names = known(results, "score", split="test")
    rows = {method_name(name): (colours(names)[name], results.scores(name, "test")[1][:, -1]) for name in names} | {
        reference(name).title: (reference(name).colour, row[None]) for name, row in results.references("test").items()
    }
    lines = 1 + max(drawing.wrapped(name).count("\n") for name in rows)
    made, (left, right) = panels(2, 2, (0.15 + 0.15 * lines) * len(rows) + 0.6, share="y")
    first = next(iter(rows.values()))[1]
    for place, (colour, values) in zip(named_rows(left, list(rows)), rows.values(), strict=True):
        _interval(left, place, statistics.pooled_iqm(values), colour)
        if len(values) > 1:
            single = statistics.iqm(values, axis=1)
            left.plot(single, np.full(len(single), place + 0.28), "|", color=colour, markersize=6)
        if place:
            _interval(right, place, statistics.difference(first, values), colour)
    right.axvline(0, color=INK, linewidth=0.8)
    right.grid(False, axis="y")
    left.set_xlabel("return on unseen tasks, IQM")
    right.set_xlabel(f"{next(iter(rows))} less the row's mean")
    return made


def _interval(axes: Axes, place: int, found: statistics.Estimate, colour: str) -> None:
    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2, zorder=3)
    axes.plot(found.value, place, "o", color=colour, markersize=6, zorder=4)


@figure("learning", WELL, "Return over distillation")
def learning(results: Results) -> Figure:
    """Return on unseen and on training tasks over the distillation steps, beside the references.

    Thick line: mean over tasks and seeds; shaded: its 95 % bootstrap interval over whole seeds and tasks, with more
    than three methods over seeds alone (lowest to highest for two seeds, none for one). Thin lines: single tasks, where
    they are not too many and at most two methods share a panel; dotted: single seeds. Level lines are the references'
    means: a policy that adapts should end above the task-blind teacher.
    """
    made, shown = split_panels(results, "score", 1, 2.9, share="xy")
    for axes, split, names in shown:
        for name in names:
            steps, scores = results.scores(name, split)
            colour, crowd = colours(names)[name], len(names) > CROWD
            band(axes, steps, scores, colour, method_name(name), crowd)
            if len(names) <= 2 and scores.shape[2] <= MANY:  # more would be an unreadable tangle
                axes.plot(steps, scores.mean(axis=0), color=colour, linewidth=0.6, alpha=0.45)
            if len(scores) > 1 and not crowd:
                axes.plot(steps, scores.mean(axis=2).T, color=colour, linewidth=1, linestyle=":")
        axes.set(title=f"Return on {SPLITS[split]}", ylabel="return")
        levels(axes, {name: row for name, row in results.references(split).items() if name != "sac"})
        step_axis(axes, ticks=8)
    shown[-1][0].set_xlabel("distillation step")
    return made


@figure("per_task", WELL, "Task by task")
def per_task(results: Results) -> Figure:
    """Return on each task at the last evaluation, beside the references on that very task.

    Marks: mean over seeds, and small ones single seeds. Lines across a task: what each reference reaches there. Of many
    tasks: each one's returns from the lowest to the highest, each in an order of its own.
    """
    made, shown = split_panels(results, "score", 1, 2.9)
    for axes, split, names in shown:
        if len(results.played(split)) > MANY:
            _sorted(axes, results, split, names)
            continue
        labels, places = results.labels(split), np.arange(len(results.played(split)))
        for position, name in enumerate(names):
            values, colour = results.scores(name, split)[1][:, -1], colours(names)[name]
            middle = places - 0.4 + 0.8 * (position + 0.5) / len(names)
            axes.plot(middle, values.mean(axis=0), "o", color=colour, markersize=6, zorder=3, label=method_name(name))
            axes.plot(middle, values.T, ".", color=colour, markersize=3)
        for name, values in results.references(split).items():
            look = reference(name)
            line = {"colors": look.colour, "linestyles": look.dash, "linewidth": 1.4, "label": look.short}
            axes.hlines(values, places - 0.45, places + 0.45, **line)
        slanted = len(labels) > 12 or sum(map(len, labels)) > 90
        axes.set_xticks(places, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set(title=f"{SPLITS[split].capitalize()}, last evaluation", ylabel="return")
        axes.margins(x=0.01)
    return made


def _sorted(axes: Axes, results: Results, split: str, names: Sequence[str]) -> None:
    """Returns on many tasks, from the lowest to the highest."""

    def line(values: np.ndarray, **look: Any) -> None:
        share = (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(share, np.sort(values), linewidth=1.4, **look)

    for name in names:
        last = results.scores(name, split)[1][:, -1].mean(axis=0)
        line(last, color=colours(names)[name], label=method_name(name))
    for name, values in results.references(split).items():
        look = reference(name)
        line(values[np.isfinite(values)], color=look.colour, linestyle=look.dash, label=look.short)
    axes.set(title=f"{SPLITS[split].capitalize()}, last evaluation", ylabel="return", xlabel="share of tasks below")


@figure("episodes", WELL, "Does it adapt?")
def episodes(results: Results) -> Figure:
    """Return in each evaluation episode on a task: does the policy get better as its context grows?

    Mean over tasks and seeds, shaded as above. The first episode acts on a sample from the prior, later ones on all
    transitions so far: a curve that rises is adaptation, a flat one is not.
    """
    made, shown = split_panels(results, "episode_return", 2, 2.7, share="y")
    last = skipped = results.run["config"].get("evaluate", {}).get("skipped_episodes", 0)
    for axes, split, names in shown:
        for name in names:
            number, values = results.scores(name, split, "episode_return", "index")
            band(axes, number, values, colours(names)[name], method_name(name), len(names) > CROWD)
            last = max(last, number[-1])
        axes.axvspan(skipped + 0.5, last + 0.5, color="#f0f0f0", zorder=0, label="counted in the score")
        axes.set(title=SPLITS[split].capitalize(), xlabel="evaluation episode")
        step_axis(axes)
    shown[0][0].set_ylabel("return")
    return made
