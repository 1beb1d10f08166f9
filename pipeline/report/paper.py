"""Lines of the paper's figures: mean over seeds and tasks; shaded: 95 % bootstrap interval of the mean over seeds where
there are three or more, otherwise from the lowest to the highest seed (none for one). Nothing is smoothed: policies are
evaluated at a few snapshots only. The paper shows one seed, shades one standard deviation over tasks, averages over 30
epochs and counts epochs of 100 steps.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import MissingData, band, figure, known, levels, log_axis, panels, seeds_of, step_axis
from pipeline.report.statistics import best_epoch
from pipeline.report.wording import colours, method_name
from pipeline.results import Results, cube

PAPER = "The paper's figures"
ABLATIONS = ("full", "no_relabelling", "no_triplet", "neither", "ground_truth")
BASELINES = ("full", "contextual_bcq", "batch_pearl")


def _returns(axes: Axes, results: Results, names: Sequence[str], split: str, title: str) -> None:
    """Mean over tasks against steps, a line with a band over seeds per method."""
    for name in known(results, "score", names, split=split):
        steps, scores = results.scores(name, split)
        band(axes, steps, scores, colours(names)[name], seeds_of(method_name(name), scores))
    axes.set(title=title, xlabel="training steps", ylabel="average return")
    step_axis(axes)


def _one_panel(results: Results, names: Sequence[str], title: str) -> Figure:
    made, (axes,) = panels(1, 1, 3.2)
    _returns(axes, results, names, "test", f"{results.title}: {title}")
    return made


@figure(
    "figure-02", PAPER, "The distillation loss falls, the multi-task policy stays poor", sweep="ablations", note=__doc__
)
def objective_gap(results: Results) -> Figure:
    """Distillation without the triplet loss and relabelling: the loss falls, the return stays poor.

    Without triplet loss and relabelling. Top: L_Q; bottom: return on the training tasks, with the mean of the tasks'
    own teachers.
    """
    known(results, "training/loss_q", ["neither"])
    made, (top, bottom) = panels(2, 1, 2.5, share="x")
    steps, losses = results.scores("neither", None, "training/loss_q")
    band(top, steps, losses, colours(["neither"])["neither"], seeds_of("neither", losses))
    top.lines[-1].set_marker("")
    if (losses > 0).all():
        log_axis(top)
    top.set(title=f"{results.title}: distillation loss L_Q", ylabel="L_Q")
    _returns(bottom, results, ["neither"], "train", "Return on training tasks")
    levels(bottom, {name: row for name, row in results.references("train").items() if name == "own_teacher"})
    return made


def gain(results: Results) -> tuple[float, str]:
    """Relative gain, with its sign, of full over the best of the other methods of Fig. 4, each at its best epoch."""
    scores = {name: results.scores(name, "test")[1] for name in results.methods("score", split="test")}
    best = {name: float(scores[name][:, best_epoch(scores[name])].mean()) for name in BASELINES if name in scores}
    full = best.pop("full", None)
    if full is None or not best:
        raise MissingData("A gain needs evaluations of full and of at least one other method on unseen tasks.")
    rival = max(best, key=lambda name: best[name])
    return (full - best[rival]) / abs(best[rival]) if best[rival] else math.nan, rival


@figure("figure-04", PAPER, "Against baselines on unseen tasks", sweep="baselines", note=__doc__)
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
    rows = results.rows("return", method=known(results, "return", ["metagenrl"])[0])
    look, label = colours(["metagenrl", "full"]), f"MetaGenRL on training task {rows['task'].iloc[0]}, one line a seed"
    made, (axes,) = panels(1, 1, 3.2)
    (_, steps), returns = cube(rows, "seed", "step")
    axes.plot(steps, returns.T, color=look["metagenrl"], linewidth=0.9, label=label)
    if "full" in results.methods("score", split="test"):
        level, label = results.scores("full", "test")[1][:, -1].mean(), "full, mean over unseen tasks, last epoch"
        axes.axhline(level, color=look["full"], linestyle="--", label=label)
    axes.set(title=f"{results.title}: MetaGenRL", xlabel="update rounds", ylabel="average return")
    step_axis(axes)
    return made


@figure("figure-06", PAPER, "Ablations on unseen tasks", sweep="ablations", note=__doc__)
def ablations(results: Results) -> Figure:
    """The full model without its parts, and with true rewards."""
    return _one_panel(results, ABLATIONS, "ablations")


@figure("figure-07", PAPER, "Error of predicted rewards", sweep="ablations")
def reward_error(results: Results) -> Figure:
    """Squared error of reward networks on other tasks' transitions while they learn.

    Squared error of single reward networks on transitions of other tasks that pass the threshold on the ensemble's
    disagreement; a single network has no disagreement, so all pass. Line: mean over tasks; shaded: one standard
    deviation over tasks, cut off below at the smallest error. Nothing is smoothed.
    """
    kinds = {"full": "ensemble", "no_ensemble": "single network"}
    names = known(results, "relabel_training_error", list(kinds))
    made, (axes,) = panels(1, 1, 3.2)
    for name in names:
        (steps, _), error = cube(results.rows("relabel_training_error", method=name), "step", "task")
        centre, width, colour = np.nanmean(error, axis=1), np.nanstd(error, axis=1), colours(names)[name]
        kept = results.rows("relabel_training_kept", method=name).sort_values("step")["value"].iloc[-1]
        label = f"{kinds[name]} ({kept:.0%} of rows kept at the end)"
        axes.plot(steps, centre, color=colour, linewidth=2, marker="o", markersize=3, label=label)
        low = np.maximum(centre - width, np.nanmin(error))  # a logarithm has no room for less
        axes.fill_between(steps, low, centre + width, color=colour, alpha=0.18, linewidth=0)
    log_axis(axes)
    axes.set_title(f"{results.title}: rewards predicted for other tasks' transitions")
    axes.set(xlabel="training steps of the reward models", ylabel="squared error")
    step_axis(axes)
    return made


@figure("figure-11", PAPER, "Margin of the triplet loss, on unseen tasks", sweep="triplet_margin", note=__doc__)
def margins(results: Results) -> Figure:
    """The full model under several margins of the triplet loss."""
    names = results.methods("score", split="test")
    if len(names) < 2:  # the margin that another sweep happens to share
        raise MissingData("Of the margins a single one is finished: run the sweep triplet_margin.")
    return _one_panel(results, names, "margin of the triplet loss")
