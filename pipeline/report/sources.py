"""Figures of what the policy of a run learned from: data, teachers, losses."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import CROWD, MissingData, figure, known, log_axis, panels, step_axis
from pipeline.report.tables import WORST
from pipeline.report.wording import MANY, colours, method_name, reference
from pipeline.results import Results

SOURCE = "What it learned from"


def _task_curves(results: Results, method: str, x: str, other: str) -> tuple[Figure, dict[int, Axes]]:
    """One panel a training task that is played with a learner's curve, the others' in grey, and the level of one
    reference."""
    known(results, "return", [method])
    tasks, rows = results.played("train"), results.rows("return", method=method, split="train")
    curves = rows.pivot(index="step", columns="task", values="value").reindex(columns=results.tasks("train"))
    if len(curves.columns) > MANY:
        return _all_curves(curves, method, x), {}
    made, grid = panels(len(tasks), 5, 1.6, share="xy")
    colour, look = reference("sac" if method == "sac" else "own_teacher").colour, reference(other)
    heights = results.references("train").get(other, np.full(len(tasks), math.nan))
    for task, axes, level, label in zip(tasks, grid, heights, results.labels("train"), strict=True):
        axes.plot(curves.index, curves[task], color=colour, zorder=3, label="this task")
        axes.plot(curves.index, curves, color="#d9d9d9", linewidth=0.6, zorder=1, label="all tasks")
        axes.axhline(level, color=look.colour, linestyle=look.dash, linewidth=1.1, label=look.title)
        axes.set_title(f"{task}: {label}", fontsize=8)
        axes.tick_params(labelsize=7)
        step_axis(axes, ticks=4)
    made.supxlabel(x, fontsize=9)
    made.supylabel("return", fontsize=9)
    return made, dict(zip(tasks, grid, strict=True))


def _all_curves(curves: pd.DataFrame, method: str, x: str) -> Figure:
    """One panel of many tasks: half of them, nearly all of them, the middle one, and those that end lowest."""
    made, (axes,) = panels(1, 1, 2.9)
    colour = reference("sac" if method == "sac" else "own_teacher").colour
    levels = curves.quantile([0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    for low, high, words in ((0.05, 0.95, "nine tasks of ten"), (0.25, 0.75, "half of the tasks")):
        axes.fill_between(curves.index, levels.loc[low], levels.loc[high], color=colour, alpha=0.18, label=words)
    axes.plot(curves.index, levels.loc[0.5], color=colour, label="median task")
    for task in curves.iloc[-1].nsmallest(WORST).index:
        axes.plot(curves.index, curves[task], color="#D55E00", linewidth=0.6, label=f"the {WORST} lowest at the end")
    axes.set(xlabel=x, ylabel="return")
    step_axis(axes)
    return made


@figure("collect_curves", SOURCE, "Data collection (SAC)")
def collect_curves(results: Results) -> Figure:
    """Return of each task's SAC policy while it collects that task's batch.

    One panel a training task, the others in grey behind it; many tasks share one. A task whose curve stays low gives a
    batch that no later stage can make up for.
    """
    return _task_curves(results, "sac", "environment steps", "random")[0]


@figure("teacher_curves", SOURCE, "Teachers")
def teacher_curves(results: Results) -> Figure:
    """Return of each task's teacher while it trains, with the checkpoint that was kept.

    One panel a training task; the dot is the checkpoint that became the teacher, the level that of the task's SAC
    policy that collected the batch. The dot is the highest of a noisy curve; the reference "own teacher" is the return
    of that checkpoint in fresh episodes.
    """
    made, grid = _task_curves(results, "teacher", "training iteration", "sac")
    for task, step, value in results.rows("selected")[["task", "step", "value"]].itertuples(index=False):
        if task in grid:
            grid[task].plot(step, value, "o", color="#D55E00", zorder=4, label="selected checkpoint")
    return made


_LOSSES = {
    "loss_q": "L_Q: distilled value",
    "loss_g": "L_G: candidate generator",
    "loss_xi": "L_ξ: perturbation",
    "loss_kl": "KL to the prior",
    "loss_triplet": "L_tri: triplet (linear scale)",
}
_NO_LOSS = ("eligible_share", "labelled_share", "valid_pairs", "loss_triplet_valid")


@figure("distill_losses", SOURCE, "Distillation losses")
def distill_losses(results: Results) -> Figure:
    """Losses of the multi-task learners over their steps: one panel a loss, one line a seed (a method in a crowd).

    One line a seed (with more than three methods, the mean over seeds), logarithmic where all values are positive;
    learners of another kind have losses of their own. The triplet loss may stay near the margin though the method
    works: judge it by the return and the reward-swap test.
    """
    rows = results.table[results.table["metric"].str.startswith("training/") & results.table["task"].isna()]
    rows = rows.assign(metric=rows["metric"].str.removeprefix("training/"))
    rows = rows[rows.groupby("method")["step"].transform("nunique") > 1]  # a bank makes one step, which is no line
    found = list(rows["metric"].unique())
    names = [*(name for name in _LOSSES if name in found), *(n for n in found if n not in (*_LOSSES, *_NO_LOSS))]
    learned = rows["method"].unique()
    methods = [name for name in results.methods("score") or learned if name in learned]
    if not names or not methods:
        raise MissingData("No losses of the distillation were recorded.")
    made, grid = panels(len(names), 3, 2.1, share="x")
    for name, axes in zip(names, grid, strict=True):
        mine = rows[rows["metric"] == name]
        for method in methods:
            lines = mine[mine["method"] == method].pivot(index="step", columns="seed", values="value")
            lines = lines.mean(axis=1) if len(methods) > CROWD else lines
            style = {"linewidth": 1.2, "alpha": 0.85, "label": method_name(method)}
            axes.plot(lines.index, lines, color=colours(methods)[method], **style)
        if name != "loss_triplet" and mine["value"].min() > 0:
            log_axis(axes)
        axes.set_title(_LOSSES.get(name, name.replace("_", " ")))
        step_axis(axes, ticks=4)
    made.supxlabel("distillation step", fontsize=9)
    return made
