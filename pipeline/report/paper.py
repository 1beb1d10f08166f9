"""Figures of the paper, drawn from the summaries of sweeps: the paper's axes, with intervals over seeds added.

The x axis counts training steps where the paper counts epochs of 100 steps. Nothing is smoothed.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.statistics import best_epoch
from pipeline.report.style import (
    key,
    labelled_lines,
    legend,
    log_axis,
    method_colours,
    panels,
    seed_band,
    step_axis,
    styled,
)
from pipeline.report.summary import (
    SPLITS,
    MissingData,
    aligned,
    check,
    curves,
    evaluations,
    last_scores,
    methods,
    numbers,
    of_method,
    plain,
    references,
)
from pipeline.report.summary import mean as finite_mean
from pipeline.report.wording import method_name

_DOTS_PER_INCH = 150
ABLATIONS = ("full", "no_relabelling", "no_triplet", "neither", "ground_truth")
BASELINES = ("full", "contextual_bcq", "batch_pearl")


class PaperFigure(NamedTuple):
    """One figure: what it shows, the sweep whose summary it needs, and the function that draws it."""

    title: str
    caption: str
    sweep: str
    draw: Callable[[dict], Figure]


class Outcome(NamedTuple):
    """What became of a figure: its file, or the sentence that says what is missing."""

    number: int
    file: Path | None
    missing: str | None


def _name(summary: dict) -> str:
    return summary.get("paper_name") or summary["environment"]


def _returns(axes: Axes, summary: dict, names: Sequence[str], split: str) -> dict:
    """Mean over tasks against steps, a line with a band over seeds per method; returns the legend's entries."""
    colours, entries = method_colours(summary), {}
    for name in names:
        if evaluations(summary, name, split):
            steps, scores = curves(summary, name, split)
            seed_band(axes, steps, scores.mean(axis=2), colours[name])
            seeds = f"{len(scores)} seed" + "s" * (len(scores) > 1)
            entries[f"{method_name(name)} ({seeds})"] = key(colours[name], marker="o", width=2)
    if not entries:
        raise MissingData(f"No evaluation of {', '.join(map(method_name, names))} on {SPLITS[split]} was recorded.")
    axes.set_ylabel("average return")
    axes.set_xlabel("training steps")
    step_axis(axes)
    return entries


def _one_panel(summary: dict, names: Sequence[str], title: str) -> Figure:
    figure, (axes,) = panels(1, 1, 3.2)
    entries = _returns(axes, summary, names, "test")
    axes.set_title(title)
    legend(figure, entries, columns=4)
    return figure


@styled
def objective_gap(summary: dict) -> Figure:
    """Figure 2: distillation without the triplet loss and relabelling: the loss falls, the return stays poor."""
    runs = [row for row in of_method(summary, "distill", "neither") if row.get("loss_q")]
    if not runs:
        raise MissingData("No distillation loss of neither was recorded.")
    colour = method_colours(summary)["neither"]
    figure, (top, bottom) = panels(2, 1, 2.5, sharex=True)
    steps, losses = aligned(runs, "loss_q")
    seed_band(top, steps, losses, colour)
    top.lines[-1].set_marker("")
    if (losses > 0).all():
        log_axis(top)
    top.set_title(f"{_name(summary)}: distillation loss L_Q")
    top.set_ylabel("L_Q")
    entries = _returns(bottom, summary, ["neither"], "train")
    bottom.set_title("Return on training tasks")
    bcq = references(summary, "train").get("bcq", numbers(None))
    labelled_lines(bottom, {"bcq": finite_mean(bcq)})
    legend(figure, entries)
    return figure


def gain(summary: dict) -> tuple[float, str]:
    """Relative gain, with its sign, of full over the best of the other methods of Fig. 4, each at its best epoch.

    Raises MissingData when full or all the others were not evaluated on the unseen tasks.
    """
    best = {}
    for name in BASELINES:
        if evaluations(summary, name, "test"):
            scores = curves(summary, name, "test")[1]
            best[name] = float(scores[:, best_epoch(scores)].mean())
    others = {name: value for name, value in best.items() if name != "full"}
    if "full" not in best or not others:
        raise MissingData("A gain needs evaluations of full and of at least one other method on unseen tasks.")
    rival = max(others, key=lambda name: others[name])
    share = (best["full"] - others[rival]) / abs(others[rival]) if others[rival] else math.nan
    return share, rival


@styled
def baselines(summary: dict) -> Figure:
    """Figure 4: the full model against contextual BCQ and PEARL on batches."""
    share, rival = gain(summary)
    return _one_panel(summary, BASELINES, f"{_name(summary)}: full {share:+.0%} over {method_name(rival)}")


@styled
def metagenrl(summary: dict) -> Figure:
    """Figure 5: MetaGenRL on one batch."""
    rows = [row for row in summary.get("metagenrl") or [] if row.get("return")]
    if not rows:
        raise MissingData("No run of MetaGenRL was recorded.")
    colours = method_colours({"evaluation": [{"method": "metagenrl"}, {"method": "full"}]})
    figure, (axes,) = panels(1, 1, 3.2)
    for row in rows:
        axes.plot(row["step"], numbers(row["return"]), color=colours["metagenrl"], linewidth=0.9)
    entries = {f"MetaGenRL on training task {rows[0]['task']}, one line a seed": key(colours["metagenrl"], width=0.9)}
    if evaluations(summary, "full", "test"):
        level = last_scores(summary, "full", "test").mean()
        axes.axhline(level, color=colours["full"], linestyle="--")
        entries["full, mean over unseen tasks, last epoch"] = key(colours["full"], "--")
    axes.set_title(f"{_name(summary)}: MetaGenRL")
    axes.set_xlabel("update rounds")
    axes.set_ylabel("average return")
    step_axis(axes)
    legend(figure, entries)
    return figure


@styled
def ablations(summary: dict) -> Figure:
    """Figure 6: the full model without its parts, and with true rewards."""
    return _one_panel(summary, ABLATIONS, f"{_name(summary)}: ablations")


_ENSEMBLES = {"full": "ensemble", "no_ensemble": "single network"}


@styled
def reward_error(summary: dict) -> Figure:
    """Figure 7: squared error of reward networks on other tasks' transitions while they learn."""
    tables = {name: rows[0]["training"] for name in _ENSEMBLES if (rows := _trained(summary, name))}
    if not tables:
        raise MissingData("No error of the reward models over their training was recorded.")
    colours = method_colours(summary)
    figure, (axes,) = panels(1, 1, 3.2)
    entries = {}
    for name, table in tables.items():
        steps = [row["step"] for row in table]
        error = np.ma.masked_invalid(numbers([row["error"] for row in table]))  # [steps, tasks]
        centre, width = error.mean(axis=1), error.std(axis=1)
        low = np.ma.maximum(centre - width, error.min())  # a logarithm has no room for less
        axes.plot(steps, centre, color=colours[name], linewidth=2, marker="o", markersize=3)
        axes.fill_between(steps, low, centre + width, color=colours[name], alpha=0.18, linewidth=0)
        kept = f" ({table[-1]['kept']:.0%} of rows kept at the end)"
        entries[_ENSEMBLES[name] + kept] = key(colours[name], marker="o", width=2)
    log_axis(axes)
    axes.set_title(f"{_name(summary)}: rewards predicted for other tasks' transitions")
    axes.set_xlabel("training steps of the reward models")
    axes.set_ylabel("squared error")
    step_axis(axes)
    legend(figure, entries)
    return figure


def _trained(summary: dict, method: str) -> list[dict]:
    return [row for row in of_method(summary, "relabelling", method) if row.get("training")]


@styled
def margins(summary: dict) -> Figure:
    """Figure 11: the full model under several margins of the triplet loss."""
    if len(methods(summary)) < 2:  # the margin that another sweep happens to share
        raise MissingData("Of the margins a single one is finished: run the sweep triplet_margin.")
    return _one_panel(summary, methods(summary), f"{_name(summary)}: margin of the triplet loss")


_BAND = (
    "Line: mean over seeds and tasks; shaded: 95 % bootstrap interval of the mean over seeds where there are three or "
    "more, otherwise from the lowest to the highest seed (none for one). Nothing is smoothed: policies are evaluated "
    "at a few snapshots only. The paper shows one seed, shades one standard deviation over tasks, averages over 30 "
    "epochs and counts epochs of 100 steps."
)

FIGURES = {
    2: PaperFigure(
        "The distillation loss falls, the multi-task policy stays poor",
        f"Without triplet loss and relabelling. Top: L_Q; bottom: return on the training tasks, with the mean of the "
        f"tasks' own BCQ policies. {_BAND}",
        "ablations",
        objective_gap,
    ),
    4: PaperFigure(
        "Against baselines on unseen tasks",
        f"{_BAND} The gain in the title compares best epochs, chosen on these very tasks, relative to the size of the "
        "best other method's return, with its sign; the paper's titles lose the sign.",
        "baselines",
        baselines,
    ),
    5: PaperFigure(
        "MetaGenRL from one batch",
        "Return on the training task whose batch it learns from, one line a seed, nothing smoothed. Dashed: the full "
        "model's mean over seeds and unseen tasks at the last epoch, where it was evaluated.",
        "metagenrl",
        metagenrl,
    ),
    6: PaperFigure("Ablations on unseen tasks", _BAND, "ablations", ablations),
    7: PaperFigure(
        "Error of predicted rewards",
        "Squared error of single reward networks on transitions of other tasks that pass the threshold on the "
        "ensemble's disagreement; a single network has no disagreement, so all pass. Line: mean over tasks; shaded: "
        "one standard deviation over tasks, cut off below at the smallest error. Nothing is smoothed.",
        "ablations",
        reward_error,
    ),
    11: PaperFigure("Margin of the triplet loss, on unseen tasks", _BAND, "triplet_margin", margins),
}


def write_figures(summaries: dict[str, dict], out: Path) -> list[Outcome]:
    """Draw every figure whose sweep's summary is there to `figure-NN.png` in `out`.

    Raises SummaryError when a summary contradicts itself; nothing is written then.
    """
    summaries = {sweep: plain(summary) for sweep, summary in summaries.items()}
    for summary in summaries.values():
        check(summary)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return [_write(number, figure, summaries, out) for number, figure in FIGURES.items()]


def _write(number: int, figure: PaperFigure, summaries: dict[str, dict], out: Path) -> Outcome:
    file = out / f"figure-{number:02d}.png"
    try:
        if figure.sweep not in summaries:
            known = next((summary["environment"] for summary in summaries.values()), "...")
            command = f"make sweep SWEEP={figure.sweep} ENV={known}"
            raise MissingData(f"Figure {number} needs the sweep {figure.sweep}: {command}")
        figure.draw(summaries[figure.sweep]).savefig(file, dpi=_DOTS_PER_INCH)
    except MissingData as missing:
        file.unlink(missing_ok=True)  # an earlier call may have left one
        return Outcome(number, None, str(missing))
    return Outcome(number, file, None)
