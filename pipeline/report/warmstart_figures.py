"""Figures 8, 12 and 13 of the paper: SAC that starts from the multi-task policy against SAC from scratch."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.typing import LineStyleType

from pipeline.report.statistics import PERCENTILES, RESAMPLES
from pipeline.report.style import INK, REFERENCES, key, legend, method_colours, panels, step_axis, styled
from pipeline.report.summary import MissingData
from pipeline.report.warmstart_numbers import (
    PERCENT,
    PLAIN,
    TRAINING,
    TWO_BATCHES,
    WARM,
    Arm,
    arm_name,
    arms,
    crossing,
    draws,
    is_warm,
    level,
    policy_name,
    resampled_curves,
    resampled_over,
    training_arm,
)

AXES = ("all_steps", "after_warmup")
COMPARISONS = ("equal", "paper")
_DOTS_PER_INCH = 150
_COLD_COLOURS = {PLAIN: REFERENCES["sac"].colour, TRAINING: REFERENCES["sac"].colour, TWO_BATCHES: "#6e6e6e"}


class Shown(NamedTuple):
    """What a figure shows: the cold arm first, and plain SAC, whose level is drawn (None where it was not run)."""

    arms: list[Arm]
    plain: Arm | None


class Picture(NamedTuple):
    """A figure with its file and caption, or, without a file, the sentence that says what is missing."""

    number: int
    title: str
    file: Path | None
    text: str


_FIGURES = {
    8: ("From the multi-task policy against from scratch", (PLAIN, WARM)),
    12: ("With and without reward ensembles", (PLAIN, WARM, "warm_no_ensemble")),
    13: ("Against SAC with the same two mini-batches", (TWO_BATCHES, WARM)),
}


def shown(summary: dict, number: int, comparison: str) -> Shown:
    """The arms of a figure. Raises MissingData, in one sentence, where one is absent."""
    found = arms(summary)
    names, plain = _FIGURES[number][1], found.get(PLAIN)
    if comparison == "paper" and PLAIN in names:
        plain = found[TRAINING] = training_arm(summary, plain or found.get(WARM))
        names = (TRAINING, *names[1:])
    if absent := [arm_name(name) for name in names if name not in found]:
        raise MissingData(f"Figure {number} needs an arm that was not run: {'; '.join(absent)}.")
    return Shown([found[name] for name in names], plain)


def points(arm: Arm, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Places on the x axis `[points]` and which points of the arm's curves stand there `[points]`.

    "all_steps" counts every environment step. "after_warmup", as the paper, puts the policy before any RL at 0,
    then counts from the first update on and drops what lies before it.
    """
    if axis == "all_steps":
        return arm.step, np.arange(len(arm.step))
    after = arm.step - arm.initial_steps - arm.warmup_steps
    kept = np.flatnonzero(after > 0)
    kept = np.concatenate([[0], kept[kept > 0]])
    return np.maximum(after[kept], 0) * (kept > 0), kept


def write_pictures(summary: dict, out: Path, axis: str, comparison: str) -> list[Picture]:
    """Draw each figure to `figure-NN.png`; one whose arms are absent is left out and says so."""
    return [_write(summary, number, out, axis, comparison) for number in _FIGURES]


def _write(summary: dict, number: int, out: Path, axis: str, comparison: str) -> Picture:
    file, title = out / f"figure-{number:02d}.png", _FIGURES[number][0]
    try:
        figure = draw(summary, number, axis, comparison)
    except MissingData as missing:
        file.unlink(missing_ok=True)  # an earlier call may have left one
        return Picture(number, title, None, str(missing))
    figure.savefig(file, dpi=_DOTS_PER_INCH)
    return Picture(number, title, file, caption(shown(summary, number, comparison), axis))


def draw(summary: dict, number: int, axis: str, comparison: str) -> Figure:
    """A figure of the paper. Raises MissingData, in one sentence, where an arm is absent."""
    return styled(functools.partial(_draw, number=number, axis=axis, comparison=comparison))(summary)


def _draw(summary: dict, number: int, axis: str, comparison: str) -> Figure:
    what = shown(summary, number, comparison)
    figure, (axes,) = panels(1, 1, 3.7)
    goal = _level(what.plain)
    entries = {}
    for arm in what.arms:
        _curve(axes, arm, axis)
        seeds = _count(len(arm.seeds), "seed")
        entries[f"{arm_name(arm.name)} ({seeds})"] = key(_colour(arm.name), _dash(arm.name), "o", 2)
    for arm in what.arms:
        if arm.policy_return is not None:
            axes.axhline(arm.policy_return.mean(), color=_colour(arm.name), linestyle=":", linewidth=1.3, zorder=1.5)
            entries[f"{policy_name(arm.name)} itself (no RL)"] = key(_colour(arm.name), ":", width=1.3)
    if what.plain is not None and math.isfinite(goal):
        axes.axhline(goal, color=INK, linestyle=(0, (6, 4)), linewidth=0.8, zorder=1.5)
        axes.annotate(
            f"{PERCENT} level", (1.01, goal), xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=8
        )
        for place, arm in enumerate(what.arms):
            _mark(axes, arm, axis, goal, place)
        entries[f"first at the {PERCENT} level of {arm_name(what.plain.name)}"] = Line2D([], [], **_ring(INK, 6))
    entries["95 % interval of the mean"] = Patch(color=INK, alpha=0.18, linewidth=0)
    axes.set_title(f"{summary.get('paper_name') or summary['environment']}: {_FIGURES[number][0]}")
    axes.set_ylabel("average return")
    counted = "all counted" if axis == "all_steps" else "after the warm-up (earlier ones hidden)"
    axes.set_xlabel(f"environment steps per task, {counted}")
    step_axis(axes, ticks=8)
    legend(figure, entries, columns=2)
    return figure


def _curve(axes: Axes, arm: Arm, axis: str) -> None:
    """Mean over tasks and seeds with its interval."""
    x, kept = points(arm, axis)
    mean, colour = arm.returns.mean(axis=(0, 1))[kept], _colour(arm.name)
    axes.plot(x, mean, color=colour, linestyle=_dash(arm.name), linewidth=2, zorder=3, marker="o", markersize=3)
    axes.fill_between(x, *interval(arm, kept), color=colour, alpha=0.18, linewidth=0)


def _mark(axes: Axes, arm: Arm, axis: str, goal: float, place: int) -> None:
    """A ring with the step where the mean is first at the goal; the texts of close rings do not overlap."""
    x, kept = points(arm, axis)
    mean, colour = arm.returns.mean(axis=(0, 1))[kept], _colour(arm.name)
    reached = float(crossing(x, mean, goal))
    if not math.isfinite(reached):
        return
    height = float(np.interp(reached, x, mean))  # above the goal where the curve starts there
    axes.plot(reached, height, zorder=5, **_ring(colour, 9))
    above = place == 1 and reached > max(x[0], 1)  # left of a curve's first point there is no room
    beside = {"xytext": (-6, 6), "ha": "right"} if above else {"xytext": (7, -14 - 5 * place), "ha": "left"}
    text = axes.annotate(
        _written(reached), (reached, height), textcoords="offset points", color=colour, fontweight="bold", **beside
    )
    text.set(fontsize=8.5, zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")])


def interval(arm: Arm, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high `[points]` of the 95 % bootstrap interval of the mean over tasks and seeds, at some points."""
    low, high = np.percentile(resampled_curves(arm, draws({arm.name: arm})), PERCENTILES, axis=0)
    return low[kept], high[kept]


def _level(plain: Arm | None) -> float:
    if plain is None:
        return math.nan
    first, last = (plain.returns[..., point].mean() for point in (0, -1))
    return float(level(first, last))


def _colour(name: str) -> str:
    method = name.removeprefix("warm_")
    return _COLD_COLOURS.get(name) or method_colours({"evaluation": [{"method": method}]})[method]


def _dash(name: str) -> LineStyleType:
    return "--" if name == TRAINING else "-"


def _ring(colour: str, size: float) -> dict:
    return {
        "marker": "o",
        "linestyle": "",
        "markersize": size,
        "markerfacecolor": "none",
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _written(steps: float) -> str:
    """Steps as they are written beside a curve: 950, 12.3K, 123K."""
    return f"{steps:.0f}" if steps < 1000 else f"{steps / 1000:.1f}K" if steps < 99_950 else f"{steps / 1000:.0f}K"


def caption(what: Shown, axis: str) -> str:
    """What is drawn and how, and what the paper did instead."""
    over = "; ".join(
        f"{arm_name(arm.name)}: {_count(len(arm.tasks), 'task')}, {_count(len(arm.seeds), 'seed')}, resampled: "
        f"{resampled_over(arm)}"
        for arm in what.arms
    )
    return " ".join(
        [
            _caption_x(what.arms, axis),
            "Line: mean over tasks and seeds; shaded: 95 % percentile bootstrap interval of that mean over tasks and, "
            f"with several, over seeds, {RESAMPLES:,} resamples ({over}). Nothing is smoothed.",
            *_caption_lines(what),
            "The paper shows one seed, shades one standard deviation over tasks, and hides 10,000 steps of SAC and "
            "20,000 of the warm start.",
        ]
    )


def _caption_x(drawn: list[Arm], axis: str) -> str:
    parts = {
        arm_name(arm.name): f"{arm.initial_steps:,} of the multi-task policy and " * is_warm(arm.name)
        + f"{arm.warmup_steps:,} of warm-up"
        for arm in drawn
    }
    before = "; ".join(f"{name}: {steps}" for name, steps in parts.items())
    if axis == "all_steps":
        return f"x: environment steps per task, every one counted, also those before the first update ({before})."
    return (
        f"x, as in the paper: environment steps per task from the first update on. That hides the steps before "
        f"({before}); the policy before any RL stands at 0."
    )


def _caption_lines(what: Shown) -> Iterator[str]:
    first = what.arms[0].name
    if first == TRAINING:
        yield (
            "As in the paper, SAC from scratch is not on these tasks: it is the run that collected the training tasks' "
            "batches, with other networks; its warm-up is taken to be that of SAC on the unseen tasks. So the "
            "comparison is unequal; the level is that of this curve, the ratios in the text are against SAC on the "
            "unseen tasks."
        )
    else:
        yield (
            "All arms learn on the same unseen tasks."
            if first != PLAIN
            else (
                "All arms learn on the same unseen tasks; the paper draws SAC from scratch on the training tasks "
                "instead, with other networks."
            )
        )
    if what.plain is None:
        yield f"No level: {arm_name(PLAIN)} was not run."
    elif math.isnan(_level(what.plain)):
        yield f"No level: {arm_name(what.plain.name)} did not improve."
    else:
        hidden = "" if any(what.plain is arm for arm in what.arms) else ", which is not drawn"
        yield (
            f"Dashed: the return at {PERCENT} of the way from the first to the last mean return of "
            f"{arm_name(what.plain.name)}{hidden}; rings: where a mean curve first gets there, with the step on this "
            "axis."
        )
    if any(arm.policy_return is not None for arm in what.arms):
        yield "Dotted: mean return of the multi-task policy in the last episode of its own steps, without RL."
