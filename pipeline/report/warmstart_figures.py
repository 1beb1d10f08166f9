"""Figures 8, 12 and 13 of the paper: SAC that starts from the multi-task policy against SAC from scratch.

`run["axis"]` is what they count: "all_steps", or "after_warmup" as in the paper. `run["comparison"]` is what Figures 8
and 12 hold against the warm start: "equal", SAC on the same tasks, or "paper", SAC on the training tasks.
"""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.report.drawing import INK, MissingData, figure, key, legend, panels, step_axis
from pipeline.report.statistics import mean_interval
from pipeline.report.warmstart_numbers import (
    PERCENT,
    PLAIN,
    TRAINING,
    TWO_BATCHES,
    WARM,
    Arm,
    arm_title,
    arms,
    crossing,
    level,
    training_arm,
)
from pipeline.report.wording import colours, reference
from pipeline.results import Results

SECTION = "Warm start"
_LINES = (
    "Line: mean over tasks and seeds; shaded: its 95 % bootstrap interval over whole seeds and tasks; nothing is "
    "smoothed. Dotted: mean return of the multi-task policy in the last episode of its own steps, without RL. Rings: "
    "from where on a mean curve stays above the level. The paper shows one seed, shades one standard deviation over "
    "tasks, and hides 10,000 steps of SAC and 20,000 of the warm start."
)
_RING: dict = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.8}
_COLD = {PLAIN: reference("sac").colour, TRAINING: reference("sac").colour, TWO_BATCHES: "#6e6e6e"}


def shown(results: Results, names: tuple[str, ...]) -> tuple[list[Arm], Arm | None]:
    """The arms of a figure, the cold one first, and plain SAC, whose level is drawn (None where it was not run)."""
    found = arms(results)
    plain = found.get(PLAIN)
    if results.run.get("comparison") == "paper" and PLAIN in names:
        plain = training_arm(results, next(iter(found.values())).warmup_steps)
        found, names = found | ({TRAINING: plain} if plain else {}), (TRAINING, *names[1:])
    if absent := [name for name in names if name not in found]:
        raise MissingData(f"The figure needs an arm that was not run: {'; '.join(map(arm_title, absent))}.")
    return [found[name] for name in names], plain


def points(arm: Arm, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Places on the x axis `[points]` and which points of the arm's curves stand there `[points]`.

    "after_warmup", as the paper, puts the policy before any RL at 0, then counts from the first update on and drops
    what lies before it.
    """
    if axis == "all_steps":
        return arm.step, np.arange(len(arm.step))
    after = arm.step - arm.initial_steps - arm.warmup_steps
    kept = np.flatnonzero(after > 0)
    kept = np.concatenate([[0], kept[kept > 0]])
    return np.maximum(after[kept], 0) * (kept > 0), kept


def _draw(results: Results, names: tuple[str, ...], title: str) -> Figure:
    drawn, plain = shown(results, names)
    axis = results.run.get("axis", "all_steps")
    made, (axes,) = panels(1, 1, 3.7)
    goal = math.nan if plain is None else float(level(plain.mean))
    entries = {}
    for arm in drawn:
        x, kept = points(arm, axis)
        colour, dash = _colour(arm.name), "--" if arm.name == TRAINING else "-"
        axes.plot(x, arm.mean[kept], color=colour, linestyle=dash, linewidth=2, zorder=3, marker="o", markersize=3)
        low, high = mean_interval(np.moveaxis(arm.returns[..., kept], 1, 2))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        entries[f"{arm.title} ({len(arm.returns)} seed{'s' * (len(arm.returns) != 1)})"] = key(colour, dash, "o", 2)
        if math.isfinite(arm.policy_return):
            axes.axhline(arm.policy_return, color=colour, linestyle=":", linewidth=1.3, zorder=1.5)
            entries[f"{arm.title.removeprefix('SAC from ')} itself (no RL)"] = key(colour, ":", width=1.3)
        if math.isfinite(goal):
            reached = float(crossing(x, arm.mean[kept], np.array(goal), stay=True))
            height = float(np.interp(reached, x, arm.mean[kept]))  # above the goal where the curve starts there
            axes.plot([reached], [height], zorder=5, color=colour, markersize=9, **_RING)
    if math.isfinite(goal):
        axes.axhline(goal, color=INK, linestyle=(0, (6, 4)), linewidth=0.8, zorder=1.5)
        axes.annotate(f"{PERCENT} level", (1.01, goal), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        entries["stays above the level from here on"] = Line2D([], [], color=INK, markersize=6, **_RING)
    entries["95 % interval of the mean"] = Patch(color=INK, alpha=0.18, linewidth=0)
    axes.set_title(f"{results.title}: {title}")
    axes.set_ylabel("average return")
    counted = "all counted" if axis == "all_steps" else "after the warm-up (earlier ones hidden)"
    axes.set_xlabel(f"environment steps per task, {counted}")
    step_axis(axes, ticks=8)
    legend(made, entries, columns=2)
    return made


def _colour(name: str) -> str:
    method = name.removeprefix("warm_")
    return _COLD.get(name) or colours([method])[method]


def _note(names: tuple[str, ...]) -> Callable[[Results], str]:
    def note(results: Results) -> str:
        drawn, plain = shown(results, names)
        before = "; ".join(f"{arm.title}: {arm.initial_steps:,} and {arm.warmup_steps:,}" for arm in drawn)
        counted = "every one counted, also those of the multi-task policy and of the warm-up before the first update"
        if results.run.get("axis") == "after_warmup":
            counted = "as in the paper from the first update on, the policy before any RL at 0; hidden are those before"
        whose = "All arms learn on the same unseen tasks."
        if drawn[0].name == TRAINING:
            whose = (
                "As in the paper, SAC from scratch is not on these tasks: it is the run that collected the training "
                "tasks' batches, with other networks; so the comparison is unequal."
            )
        goal = "No level: SAC from scratch was not run or did not improve."
        if plain is not None and math.isfinite(level(plain.mean)):
            goal = f"Dashed: {PERCENT} of the way from the first to the last mean return of {plain.title}."
        return f"x: environment steps per task, {counted} ({before}). {whose} {goal} {_LINES}"

    return note


@figure("figure-08", SECTION, "From the multi-task policy against from scratch", "return", _note((PLAIN, WARM)))
def against_scratch(results: Results) -> Figure:
    """SAC that starts from the multi-task policy, and SAC from random networks (paper, Fig. 8)."""
    return _draw(results, (PLAIN, WARM), "SAC from the policy and from scratch")


@figure("figure-12", SECTION, "With and without reward ensembles", "return", _note((PLAIN, WARM, "warm_no_ensemble")))
def without_ensembles(results: Results) -> Figure:
    """The same, beside a start from a policy that learned without reward ensembles (paper, Fig. 12)."""
    return _draw(results, (PLAIN, WARM, "warm_no_ensemble"), "SAC from policies with and without reward ensembles")


@figure("figure-13", SECTION, "Against SAC with the same two batches", "return", _note((TWO_BATCHES, WARM)))
def against_two_batches(results: Results) -> Figure:
    """SAC from the multi-task policy, and SAC from scratch with the same two mini-batches an update (paper, Fig. "
    "13)."""
    return _draw(results, (TWO_BATCHES, WARM), "with the same two mini-batches an update")
