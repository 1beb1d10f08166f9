"""What a policy does, in its family's own terms: paths and goals, velocities and targets, or what a step earned."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mbml.envs import View
from pipeline.report.drawing import INK, MissingData, figure, panels, step_axis
from pipeline.report.wording import method_name, task_heading
from pipeline.results import Results

DOES = "What does it do?"
_TARGET = "#D55E00"


@dataclass(frozen=True)
class Shown:
    """What is shown of one task."""

    title: str
    feature: np.ndarray
    """The task's numbers `[p]`."""
    episodes: Mapping[int, tuple[np.ndarray, np.ndarray]]
    """By their number from 1: steps `[n]` and what is shown of them `[n, axes]`."""
    remarks: Mapping[int, str] = field(default_factory=dict)
    """What the legend says of an episode besides its number."""


def panels_of(view: View, tasks: Sequence[Shown]) -> Figure:
    """A panel a task, with a line an episode, the later the darker."""
    flat = len(view.axes) == 2
    columns, height = (4, 2.6) if flat else (2, 2.0)
    made, grid = panels(len(tasks), columns, height if len(tasks) > 1 else 3.4, share="" if flat else "xy")
    numbers = sorted({number for task in tasks for number in task.episodes})
    shades = dict(zip(numbers, matplotlib.colormaps["viridis_r"](np.linspace(0.2, 0.95, len(numbers))), strict=True))
    for axes, task in zip(grid, tasks, strict=True):
        for number, (steps, values) in task.episodes.items():
            look = {"color": shades[number], "label": f"episode {number}{task.remarks.get(number, '')}", "zorder": 3}
            if flat:
                path = np.vstack([np.zeros(2), values]) if view.kind == "direction" else values
                axes.plot(*path.T, linewidth=1.1, markevery=[-1], marker="o", markersize=4, **look)
            else:
                axes.plot(steps, values[:, 0], linewidth=0.8, **look)
        _COMPARED[view.kind](axes, view, task)
        axes.set_title(textwrap.fill(task.title, 22 if flat and len(tasks) > 1 else 60), fontsize=9)
        if flat:
            axes.set_aspect("equal", adjustable="datalim" if view.kind == "direction" else "box")
            axes.set_xlabel(view.axes[0])
        else:
            step_axis(axes)
    grid[0].set_ylabel(view.axes[-1])
    if not flat:
        made.supxlabel("step of the episode", fontsize=9)
    elif len(tasks) == 1:
        made.set_size_inches(4.6, 4.8)
    return made


def _goal(axes: Axes, view: View, task: Shown) -> None:
    axes.plot(*task.feature, "*", color=_TARGET, markersize=12, linestyle="", label="goal", zorder=5)
    for x, y, width, height in view.walls:
        axes.add_patch(Rectangle((x, y), width, height, facecolor="#d0d0d0", edgecolor="none", zorder=1))
    starts = np.stack([values[0] for _, values in task.episodes.values()])
    axes.plot(*starts.T, "+", color=INK, markersize=7, linestyle="", label="start", zorder=5)
    axes.grid(not view.walls)


def _direction(axes: Axes, view: View, task: Shown) -> None:
    far = max(float(np.hypot(*values.T).max()) for _, values in task.episodes.values())
    (angle,) = task.feature
    end = (far * math.cos(angle), far * math.sin(angle))
    axes.plot([0, end[0]], [0, end[1]], color=_TARGET, linestyle="--", label="wanted direction", zorder=2)


def _level(axes: Axes, view: View, task: Shown) -> None:
    axes.axhline(task.feature[0], color=_TARGET, linestyle="--", linewidth=1.4, label="target", zorder=5)


_COMPARED: dict[str, Callable[[Axes, View, Shown], None]] = {
    "goal": _goal,
    "direction": _direction,
    "level": _level,
    "progress": lambda axes, view, task: None,
    "reward": lambda axes, view, task: None,
}
"""What every kind of view draws besides the episodes."""


@figure("behaviour", DOES, "Episodes on unseen tasks")
def behaviour(results: Results) -> Figure:
    """What the policy that is handed out did in its first, second and fifth episode on up to four unseen tasks.

    It plays them anew and knows nothing of the task at first; the later the episode, the darker the line. A dot ends a
    path; orange is what the task asks for. A policy that adapts comes nearer to it in later episodes.
    """
    rows = results.table[results.table["metric"].str.startswith("behaviour_")]
    if rows.empty:
        raise MissingData("No episodes of a policy that is handed out were recorded.")
    view = View(**results.run["view"])
    shown = []
    for task in results.run["tasks"]["test"]:
        mine = rows[rows["task"] == task["index"]]
        episodes = {}
        for number, episode in mine.groupby("index"):
            wide = episode.pivot(index="step", columns="metric", values="value")
            episodes[int(number)] = wide.index.to_numpy(), wide.to_numpy()
        if episodes:
            title = task_heading(task["label"], results.run["parameter"])
            shown.append(Shown(title, np.atleast_1d(task["features"]), episodes))
    made = panels_of(view, shown)
    made.suptitle(f"{method_name(rows['method'].iloc[0])}, seed {rows['seed'].iloc[0]}", fontsize=9, x=0.99, ha="right")
    return made
