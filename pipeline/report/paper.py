"""Figures of the paper, from the results of sweeps: the paper's axes, with intervals over seeds added.

The x axis counts training steps where the paper counts epochs of 100 steps. Nothing is smoothed.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import MissingData, band, figure, key, legend, levels, log_axis, panels, step_axis
from pipeline.report.statistics import best_epoch
from pipeline.report.wording import colours, method_name
from pipeline.results import SPLITS, Results, cube

PAPER = "The paper's figures"
ABLATIONS = ("full", "no_relabelling", "no_triplet", "neither", "ground_truth")
BASELINES = ("full", "contextual_bcq", "batch_pearl")
_BAND = (
    "Line: mean over seeds and tasks; shaded: 95 % bootstrap interval of the mean over seeds where there are three or "
    "more, otherwise from the lowest to the highest seed (none for one). Nothing is smoothed: policies are evaluated "
    "at a few snapshots only. The paper shows one seed, shades one standard deviation over tasks, averages over 30 "
    "epochs and counts epochs of 100 steps."
)


def _returns(axes: Axes, results: Results, names: Sequence[str], split: str) -> dict:
    """Mean over tasks against steps, a line with a band over seeds per method; returns the legend's entries."""
    entries = {}
    for name in [name for name in names if name in results.methods("score", split=split)]:
        steps, scores = results.scores(name, split)
        seeds = f"{len(scores)} seed" + "s" * (len(scores) > 1)
        entries[f"{method_name(name)} ({seeds})"] = band(axes, steps, scores, colours(names)[name])
    if not entries:
        raise MissingData(f"No evaluation of {', '.join(map(method_name, names))} on {SPLITS[split]} was recorded.")
    axes.set_ylabel("average return")
    axes.set_xlabel("training steps")
    step_axis(axes)
    return entries


def _one_panel(results: Results, names: Sequence[str], title: str) -> Figure:
    made, (axes,) = panels(1, 1, 3.2)
    legend(made, _returns(axes, results, names, "test"), columns=4)
    axes.set_title(f"{results.title}: {title}")
    return made


@figure(
    "figure-02",
    PAPER,
    "The distillation loss falls, the multi-task policy stays poor",
    needs="training/",
    sweep="ablations",
    note=_BAND,
)
def objective_gap(results: Results) -> Figure:
    """Distillation without the triplet loss and relabelling: the loss falls, the return stays poor.

    Without triplet loss and relabelling. Top: L_Q; bottom: return on the training tasks, with the mean of the tasks'
    own teachers.
    """
    rows = results.rows("training/loss_q", method="neither")
    if rows.empty:
        raise MissingData("No distillation loss of neither was recorded.")
    made, (top, bottom) = panels(2, 1, 2.5, share="x")
    (_, steps), losses = cube(rows, "seed", "step")
    band(top, steps, losses[..., None], colours(["neither"])["neither"])
    top.lines[-1].set_marker("")
    if (losses > 0).all():
        log_axis(top)
    top.set_title(f"{results.title}: distillation loss L_Q")
    top.set_ylabel("L_Q")
    entries = _returns(bottom, results, ["neither"], "train")
    bottom.set_title("Return on training tasks")
    own = {name: row for name, row in results.references("train").items() if name == "own_teacher"}
    entries |= levels(bottom, own)
    legend(made, entries)
    return made


def gain(results: Results) -> tuple[float, str]:
    """Relative gain, with its sign, of full over the best of the other methods of Fig. 4, each at its best epoch."""
    best = {}
    for name in [name for name in BASELINES if name in results.methods("score", split="test")]:
        scores = results.scores(name, "test")[1]
        best[name] = float(scores[:, best_epoch(scores)].mean())
    others = {name: value for name, value in best.items() if name != "full"}
    if "full" not in best or not others:
        raise MissingData("A gain needs evaluations of full and of at least one other method on unseen tasks.")
    rival = max(others, key=lambda name: others[name])
    return (best["full"] - others[rival]) / abs(others[rival]) if others[rival] else math.nan, rival


@figure("figure-04", PAPER, "Against baselines on unseen tasks", needs="score", sweep="baselines", note=_BAND)
def baselines(results: Results) -> Figure:
    """The full model against contextual BCQ and PEARL on batches.

    The gain in the title compares best epochs, chosen on these very tasks, relative to the size of the best other
    method's return, with its sign; the paper's titles lose the sign.
    """
    share, rival = gain(results)
    return _one_panel(results, BASELINES, f"full {share:+.0%} over {method_name(rival)}")


@figure("figure-05", PAPER, "MetaGenRL from one batch", sweep="metagenrl")
def metagenrl(results: Results) -> Figure:
    """MetaGenRL on one batch.

    Return on the training task whose batch it learns from, one line a seed, nothing smoothed. Dashed: the full model's
    mean over seeds and unseen tasks at the last epoch, where it was evaluated.
    """
    rows = results.rows("return", method="metagenrl")
    if rows.empty:
        raise MissingData("No run of MetaGenRL was recorded.")
    look, task = colours(["metagenrl", "full"]), rows["task"].iloc[0]
    made, (axes,) = panels(1, 1, 3.2)
    (_, steps), returns = cube(rows, "seed", "step")
    axes.plot(steps, returns.T, color=look["metagenrl"], linewidth=0.9)
    entries = {f"MetaGenRL on training task {task}, one line a seed": key(look["metagenrl"], width=0.9)}
    if "full" in results.methods("score", split="test"):
        axes.axhline(results.scores("full", "test")[1][:, -1].mean(), color=look["full"], linestyle="--")
        entries["full, mean over unseen tasks, last epoch"] = key(look["full"], "--")
    axes.set_title(f"{results.title}: MetaGenRL")
    axes.set_xlabel("update rounds")
    axes.set_ylabel("average return")
    step_axis(axes)
    legend(made, entries)
    return made


@figure("figure-06", PAPER, "Ablations on unseen tasks", needs="score", sweep="ablations", note=_BAND)
def ablations(results: Results) -> Figure:
    """The full model without its parts, and with true rewards."""
    return _one_panel(results, ABLATIONS, "ablations")


_ENSEMBLES = {"full": "ensemble", "no_ensemble": "single network"}


@figure("figure-07", PAPER, "Error of predicted rewards", sweep="ablations")
def reward_error(results: Results) -> Figure:
    """Squared error of reward networks on other tasks' transitions while they learn.

    Squared error of single reward networks on transitions of other tasks that pass the threshold on the ensemble's
    disagreement; a single network has no disagreement, so all pass. Line: mean over tasks; shaded: one standard
    deviation over tasks, cut off below at the smallest error. Nothing is smoothed.
    """
    known = results.methods("relabel_training_error")
    names = [name for name in _ENSEMBLES if name in known]
    if not names:
        raise MissingData("No error of the reward models over their training was recorded.")
    made, (axes,) = panels(1, 1, 3.2)
    entries = {}
    for name in names:
        (steps, _), error = cube(results.rows("relabel_training_error", method=name), "step", "task")
        centre, width, colour = np.nanmean(error, axis=1), np.nanstd(error, axis=1), colours(names)[name]
        low = np.maximum(centre - width, np.nanmin(error))  # a logarithm has no room for less
        axes.plot(steps, centre, color=colour, linewidth=2, marker="o", markersize=3)
        axes.fill_between(steps, low, centre + width, color=colour, alpha=0.18, linewidth=0)
        kept = results.rows("relabel_training_kept", method=name).sort_values("step")["value"].iloc[-1]
        entries[f"{_ENSEMBLES[name]} ({kept:.0%} of rows kept at the end)"] = key(colour, marker="o", width=2)
    log_axis(axes)
    axes.set_title(f"{results.title}: rewards predicted for other tasks' transitions")
    axes.set_xlabel("training steps of the reward models")
    axes.set_ylabel("squared error")
    step_axis(axes)
    legend(made, entries)
    return made


@figure(
    "figure-11", PAPER, "Margin of the triplet loss, on unseen tasks", needs="score", sweep="triplet_margin", note=_BAND
)
def margins(results: Results) -> Figure:
    """The full model under several margins of the triplet loss."""
    names = results.methods("score", split="test")
    if len(names) < 2:  # the margin that another sweep happens to share
        raise MissingData("Of the margins a single one is finished: run the sweep triplet_margin.")
    return _one_panel(results, names, "margin of the triplet loss")
