"""Pictures of how well it went and what it took: each function takes a summary and returns a Figure.

Every function raises MissingData, with one sentence, when the summary does not hold what it draws.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report import comparison as compared
from pipeline.report import statistics
from pipeline.report.comparison import evaluated
from pipeline.report.style import (
    CROWD,
    FAINT,
    INK,
    REFERENCES,
    WIDTH,
    band,
    key,
    labelled_lines,
    legend,
    log_axis,
    method_colours,
    method_rows,
    panels,
    reference,
    seed_band,
    step_axis,
    styled,
)
from pipeline.report.summary import (
    SPLITS,
    MissingData,
    aligned,
    curves,
    evaluations,
    labels,
    last_scores,
    mean,
    numbers,
    references,
    task_label,
)
from pipeline.report.wording import duration, method_name, reference_name

COUNTED_EPISODES = (3, 5)  # paper, evaluation on unseen tasks: the first two of five episodes are not counted


def _task_curves(summary: dict, stage: str, x: str, colour: str) -> tuple[Figure, list[tuple[int, Axes]]]:
    found = (summary.get(stage) or {}).get("curves")
    if not found:
        raise MissingData(f"No learning curves of stage '{stage}' were recorded.")
    figure, grid = panels(len(found), 5, 1.6, sharex=True, sharey=True)
    gap = [math.nan]
    everyone = [np.concatenate([[*numbers(curve[field]), *gap] for curve in found]) for field in (x, "return")]
    for curve, axes in zip(found, grid, strict=True):
        axes.plot(*everyone, color=FAINT, linewidth=0.6, zorder=1)
        axes.plot(numbers(curve[x]), numbers(curve["return"]), color=colour, zorder=3)
        axes.set_title(task_label(summary, curve["task"]), fontsize=8)
        axes.tick_params(labelsize=7)
        step_axis(axes, ticks=4)
    figure.supxlabel("environment steps" if x == "step" else "training iteration", fontsize=9)
    figure.supylabel("return", fontsize=9)
    return figure, [(curve["task"], axes) for curve, axes in zip(found, grid, strict=True)]


def _task_level(axes: Axes, summary: dict, name: str, task: int) -> bool:
    values = references(summary, "train").get(name, numbers(None))
    if not 0 <= task < len(values) or not math.isfinite(values[task]):
        return False
    axes.axhline(values[task], color=REFERENCES[name].colour, linestyle=REFERENCES[name].dash, linewidth=1.1)
    return True


@styled
def collect_curves(summary: dict) -> Figure:
    """Return of each task's SAC policy while it collects that task's batch."""
    colour = REFERENCES["sac"].colour
    figure, grid = _task_curves(summary, "collect", "step", colour)
    entries = {"this task": key(colour), "all tasks": key(FAINT, width=1)}
    drawn = [_task_level(axes, summary, "random", task) for task, axes in grid]
    if any(drawn):
        entries["random"] = key(REFERENCES["random"].colour, REFERENCES["random"].dash)
    legend(figure, entries)
    return figure


@styled
def bcq_curves(summary: dict) -> Figure:
    """Return of each task's BCQ policy while it trains, with the checkpoint that became the teacher."""
    colour = REFERENCES["bcq"].colour
    figure, grid = _task_curves(summary, "bcq", "iteration", colour)
    entries = {"this task": key(colour), "all tasks": key(FAINT, width=1)}
    chosen = {row["task"]: row for row in summary["bcq"].get("selected") or []}
    for task, axes in grid:
        if task in chosen and chosen[task]["return"] is not None:
            axes.plot(chosen[task]["iteration"], chosen[task]["return"], "o", color="#D55E00", zorder=4)
            entries["selected checkpoint"] = key("#D55E00", "", "o")
    drawn = [_task_level(axes, summary, "sac", task) for task, axes in grid]
    if any(drawn):
        entries["own SAC at the end"] = key(REFERENCES["sac"].colour, REFERENCES["sac"].dash)
    legend(figure, entries)
    return figure


_LOSSES = {
    "loss_q": "L_Q: distilled value",
    "loss_g": "L_G: candidate generator",
    "loss_xi": "L_ξ: perturbation",
    "loss_kl": "KL to the prior",
    "loss_triplet": "L_tri: triplet (linear scale)",
}
_NO_LOSS = ("method", "seed", "step", "eligible_share", "valid_pairs", "loss_triplet_valid")


@styled
def distill_losses(summary: dict) -> Figure:
    """Losses of the multi-task learners over their steps: one panel a loss, one line a seed (a method in a crowd)."""
    runs = summary.get("distill") or []
    fields = dict.fromkeys([*_LOSSES, *(name for run in runs for name in run if name not in _NO_LOSS)])
    names = [name for name in fields if any(np.isfinite(numbers(run.get(name))).any() for run in runs)]
    if not names:
        raise MissingData("No losses of the distillation were recorded.")
    colours = method_colours(summary)
    figure, grid = panels(len(names), 3, 2.1, sharex=True)
    for name, axes in zip(names, grid, strict=True):
        lowest = min(_loss_lines(axes, runs, name, method, colours[method]) for method in _methods_of(runs))
        if name != "loss_triplet" and lowest > 0:
            log_axis(axes)
        axes.set_title(_LOSSES.get(name, name.replace("_", " ")))
        step_axis(axes, ticks=4)
    figure.supxlabel("distillation step", fontsize=9)
    legend(figure, {method_name(name): key(colours[name]) for name in _methods_of(runs)})
    return figure


def _methods_of(runs: list[dict]) -> list[str]:
    return list(dict.fromkeys(run["method"] for run in runs))


def _loss_lines(axes: Axes, runs: list[dict], name: str, method: str, colour: str) -> float:
    """Draw one loss of one method; returns the lowest value drawn, infinity if none."""
    crowd = len(_methods_of(runs)) > CROWD
    runs = [run for run in runs if run["method"] == method and run.get(name)]
    if crowd and runs:
        steps, values = aligned(runs, name)
        lines = [(steps, values.mean(axis=0))]
    else:
        lines = [(run["step"], numbers(run[name])) for run in runs]
    for steps, values in lines:
        axes.plot(steps, values, color=colour, linewidth=1.2, alpha=0.85)
    return min((float(value) for _, values in lines for value in values if np.isfinite(value)), default=math.inf)


@styled
def learning(summary: dict) -> Figure:
    """Return on unseen and on training tasks over the distillation steps, beside the references."""
    shown = [split for split in SPLITS if evaluated(summary, split)]
    if not shown:
        raise MissingData("No evaluation of the multi-task policy was recorded.")
    colours = method_colours(summary)
    figure, grid = panels(len(shown), 1, 2.9, sharex=True, sharey=True)
    entries, seeds, levels = {}, {}, {}
    for split, axes in zip(shown, grid, strict=True):
        names = evaluated(summary, split)
        for name in names:
            steps, scores = curves(summary, name, split)
            entries[method_name(name)] = key(colours[name], marker="o", width=2.2)
            if len(names) > CROWD:
                seed_band(axes, steps, scores.mean(axis=2), colours[name])
                continue
            if len(names) <= 2:  # more methods' single tasks would be an unreadable tangle
                axes.plot(steps, scores.mean(axis=0), color=colours[name], linewidth=0.6, alpha=0.45)
            if len(scores) > 1:
                axes.plot(steps, scores.mean(axis=2).T, color=colours[name], linewidth=1, linestyle=":")
                seeds["single seeds"] = key(INK, ":", width=1)
            band(axes, steps, scores.mean(axis=0), colours[name])
        axes.set_title(f"Return on {SPLITS[split]}")
        axes.set_ylabel("return")
        levels[split] = {name: mean(values) for name, values in references(summary, split).items() if name != "sac"}
    everything = [level for values in levels.values() for level in values.values() if math.isfinite(level)]
    for axes in grid:
        if everything:  # the panels share one y axis, so all levels must be in range before names are placed
            axes.update_datalim([(0, min(everything)), (0, max(everything))], updatex=False)
            axes.autoscale_view()
    for split, axes in zip(shown, grid, strict=True):
        labelled_lines(axes, levels[split])
    grid[-1].set_xlabel("distillation step")
    step_axis(grid[-1], ticks=8)
    legend(figure, entries | seeds)
    return figure


@styled
def per_task(summary: dict) -> Figure:
    """Return on each task at the last evaluation, beside the references on that very task."""
    shown = [split for split in SPLITS if evaluated(summary, split)]
    if not shown:
        raise MissingData("No evaluation of the multi-task policy was recorded.")
    crowd = max(len(evaluated(summary, split)) for split in shown) > CROWD
    figure, grid = panels(len(shown), 1, 3.6 if crowd else 2.9)
    entries = {}
    for split, axes in zip(shown, grid, strict=True):
        if crowd:  # so many bars a task would be too thin to tell apart
            _task_map(axes, summary, split)
        else:
            entries |= _task_bars(axes, summary, split)
        axes.set_title(f"{SPLITS[split].capitalize()}, last evaluation")
    legend(figure, entries)
    return figure


def _task_map(axes: Axes, summary: dict, split: str) -> None:
    """Methods, then references, as rows; tasks as columns; the colour and the number are the return."""
    rows = {method_name(name): last_scores(summary, name, split).mean(axis=0) for name in evaluated(summary, split)}
    rows |= {reference_name(name): values for name, values in references(summary, split).items()}
    table = np.array(list(rows.values()))
    image = axes.pcolormesh(np.ma.masked_invalid(table), cmap="viridis", edgecolors="white", linewidth=0.8)
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(table if table.shape[1] <= 14 else table[:, :0]):
        if math.isfinite(value):
            ink = "white" if value < low + 0.6 * (high - low) else INK
            written = f"{value:.0f}" if high - low >= 10 else f"{value:.2g}"
            axes.text(column + 0.5, row + 0.5, written, ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    axes.invert_yaxis()
    _task_ticks(axes, np.arange(table.shape[1]) + 0.5, labels(summary, split, table.shape[1]))
    axes.grid(False)
    axes.get_figure().colorbar(image, ax=axes, pad=0.01, aspect=30).set_label("return", fontsize=8)  # type: ignore[union-attr]


def _task_ticks(axes: Axes, places: np.ndarray, names: list[str]) -> None:
    slanted = len(names) > 12 or sum(map(len, names)) > 90
    axes.set_xticks(places, names, rotation=45 if slanted else 0, ha="right" if slanted else "center")


def _task_bars(axes: Axes, summary: dict, split: str) -> dict:
    names, colours = evaluated(summary, split), method_colours(summary)
    entries, seeds = {}, {}
    width = 0.8 / len(names)
    places = numbers(None)
    for position, name in enumerate(names):
        scores = last_scores(summary, name, split)
        places = np.arange(scores.shape[1])
        middle = places - 0.4 + width * (position + 0.5)
        axes.bar(middle, scores.mean(axis=0), width * 0.94, color=colours[name], alpha=0.75)
        entries[method_name(name)] = key(colours[name], width=6)
        if len(scores) > 1:
            axes.plot(middle, scores.T, ".", color=INK, markersize=4)
            seeds["single seeds"] = key(INK, "", ".")
    entries |= seeds
    for name, values in references(summary, split).items():
        style = reference(name)
        axes.hlines(values, places - 0.45, places + 0.45, colors=style.colour, linestyles=style.dash, linewidth=1.7)
        entries[reference_name(name)] = key(style.colour, style.dash)
    _task_ticks(axes, places, labels(summary, split, len(places)))
    axes.set_ylabel("return")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(False, axis="x")
    axes.margins(x=0.01)
    return entries


@styled
def episodes(summary: dict) -> Figure:
    """Return in each evaluation episode on a task: does the policy get better as its context grows?"""
    shown = [split for split in SPLITS if evaluated(summary, f"{split}_episodes")]
    if not shown:
        raise MissingData("No returns of single evaluation episodes were recorded.")
    colours = method_colours(summary)
    figure, grid = panels(len(shown), 2, 2.7, sharey=True)
    entries, counted = {}, {}
    for split, axes in zip(shown, grid, strict=True):
        for name in evaluated(summary, f"{split}_episodes"):
            rows = evaluations(summary, name, f"{split}_episodes")
            returns = np.array([numbers(row[f"{split}_episodes"]) for row in rows])  # [seeds, tasks, episodes]
            number = np.arange(1, returns.shape[2] + 1)
            if len(evaluated(summary, f"{split}_episodes")) > CROWD:
                seed_band(axes, number, returns.mean(axis=1), colours[name])
            else:
                band(axes, number, returns.mean(axis=0).T, colours[name])
            entries[method_name(name)] = key(colours[name], marker="o", width=2.2)
            if len(number) == COUNTED_EPISODES[1]:
                axes.axvspan(COUNTED_EPISODES[0] - 0.5, number[-1] + 0.5, color="#f4f4f4", zorder=0)
                counted["counted in the score"] = Patch(color="#ececec")
        axes.set_title(SPLITS[split].capitalize())
        axes.set_xlabel("evaluation episode")
        step_axis(axes)
    grid[0].set_ylabel("return")
    legend(figure, entries | counted)
    return figure


@styled
def comparison(summary: dict) -> Figure:
    """Interquartile mean on unseen tasks of each method at the last epoch, beside the references' means."""
    rows = [row for row in compared.rows(summary, "test") if row.epoch == "last" and math.isfinite(row.iqm.value)]
    if not rows:
        raise MissingData("No evaluation of the multi-task policy on unseen tasks was recorded.")
    colours = method_colours(summary)
    figure, (axes,) = panels(1, 1, 0.36 * len(rows) + 0.9)
    entries = {"IQM, 95 % interval": key(INK, marker="o", width=2.2)}
    for place, row in zip(method_rows(axes, [row.method for row in rows]), rows, strict=True):
        colour = colours[row.method]
        axes.plot([row.iqm.low, row.iqm.high], [place, place], color=colour, linewidth=2.2, zorder=3)
        axes.plot(row.iqm.value, place, "o", color=colour, markersize=7, zorder=4)
        if row.seeds > 1:
            _, scores = curves(summary, row.method, "test")
            single = [statistics.iqm(tasks) for tasks in scores[:, -1]]
            axes.plot(single, np.full(row.seeds, place + 0.24), "|", color=colour, markersize=6, markeredgewidth=1.4)
            entries["single seeds"] = key(INK, "", "|")
    for name, values in references(summary, "test").items():
        style = reference(name)
        axes.axvline(mean(values), color=style.colour, linestyle=style.dash, linewidth=1.2, zorder=1.5)
        entries[f"{reference_name(name)} (mean)"] = key(style.colour, style.dash)
    axes.set_xlabel("return on unseen tasks, last epoch")
    legend(figure, entries, columns=4)
    return figure


@styled
def cost(summary: dict) -> Figure:
    """Wall time and peak memory of each stage."""
    rows = summary.get("cost")
    if not rows:
        raise MissingData("No times or memory of the stages were recorded.")
    figure = Figure(figsize=(WIDTH, 0.34 * len(rows) + 1.1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    seconds, memory = (numbers([row.get(name) for row in rows]) for name in ("wall_seconds", "peak_memory_mb"))
    for axes, values, written, title in (
        (left, seconds, [duration(value) for value in seconds], "Wall time"),
        (right, memory, [f"{value:,.0f} MB" if value == value else "–" for value in memory], "Peak memory"),
    ):
        bars = axes.barh(places, np.nan_to_num(values), 0.65, color="#0072B2")
        axes.bar_label(bars, written, fontsize=8, padding=3)
        axes.set_title(title)
        axes.grid(False, axis="y")
        axes.margins(x=0.25)
    names = [
        row["stage"] + (f"\n({row['reused']} of {row['jobs']} reused)" if row.get("reused") else "") for row in rows
    ]
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlabel("seconds")
    right.set_xlabel("MB")
    return figure
