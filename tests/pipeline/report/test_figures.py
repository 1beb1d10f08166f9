import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from pipeline.report import comparison, statistics
from pipeline.report.sections import SECTIONS
from pipeline.report.style import method_colours, spread
from pipeline.report.summary import MissingData, plain

DRAW = {picture.name: picture.draw for section in SECTIONS for picture in section.pictures}


def bars(axes: Axes) -> list[Any]:
    """The bars of a panel, in the order in which they were drawn."""
    return list(axes.patches)


def style(line: Line2D, name: str) -> Any:
    """A property of a line; matplotlib's stubs give its type as a wide union."""
    return line.properties()[name]


def points(collection: Collection) -> np.ndarray:
    """Places `[n, 2]` of the marks of a scatter."""
    return np.asarray(collection.get_offsets())


@pytest.fixture(scope="module")
def two(make_summary):
    """Two methods with two seeds each."""
    return plain(make_summary(seeds=2, methods=("full", "no_triplet")))


@pytest.fixture(scope="module")
def many(make_summary):
    """Eight methods with two seeds each."""
    names = ("full", "no_relabelling", "no_triplet", "neither", "ground_truth", "no_ensemble")
    return plain(make_summary(seeds=2, methods=(*names, "contextual_bcq", "batch_pearl")))


@pytest.mark.parametrize("name", DRAW)
def test_missing_data_is_said_in_one_sentence(name):
    with pytest.raises(MissingData, match=r"^[A-Z].*\.$"):
        DRAW[name]({"environment": "ant_dir"})


@pytest.mark.parametrize("name", DRAW)
def test_null_sections_are_missing_data_too(name, two):
    with pytest.raises(MissingData):
        DRAW[name](dict.fromkeys(two) | {"environment": "ant_dir"})


def test_bcq_marks_the_selected_checkpoint(two):
    axes = DRAW["bcq_curves"](two).axes
    assert len(axes) == 3
    dots = [line for line in axes[1].lines if line.get_marker() == "o"]
    assert [(style(dot, "xdata")[0], style(dot, "ydata")[0]) for dot in dots] == [(5000, 220.0)]


def test_learning_draws_the_mean_over_tasks_and_the_references(two):
    unseen, training = DRAW["learning"](two).axes
    scores = np.mean([run["test"] for run in two["evaluation"] if run["method"] == "full"], axis=0)
    means = [line.get_ydata() for line in unseen.lines if line.get_marker() == "o"]
    assert np.allclose(means[0], scores.mean(axis=1))
    names = [text.get_text() for text in training.texts]
    assert sorted(names) == [
        "best task-blind teacher",
        "nearest task's teacher",
        "own BCQ",
        "random",
        "zero action",
    ]
    low, high = training.get_ylim()
    assert low < np.mean(two["references"]["train"]["random"]) < np.mean(two["references"]["train"]["bcq"]) < high


def test_per_task_bars_are_means_over_seeds(two):
    unseen, training = DRAW["per_task"](two).axes
    assert len(bars(unseen)) == 2 * 4
    assert len(bars(training)) == 2 * 3
    scores = [run["test"][-1] for run in two["evaluation"] if run["method"] == "full"]
    assert np.allclose([bar.get_height() for bar in bars(unseen)[:4]], np.mean(scores, axis=0))
    assert [tick.get_text() for tick in unseen.get_xticklabels()] == [t["label"] for t in two["tasks"]["test"]]


def test_losses_are_logarithmic_only_where_all_are_positive(two):
    changed = two | {"distill": [dict(run) for run in two["distill"]]}
    changed["distill"][0]["loss_kl"] = [-1.0, *changed["distill"][0]["loss_kl"][1:]]
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in DRAW["distill_losses"](changed).axes}
    assert scales.pop("KL to the prior") == "linear"
    assert scales.pop("L_tri: triplet (linear scale)") == "linear"
    assert set(scales.values()) == {"log"}


def test_losses_without_a_triplet_have_no_such_panel(make_summary):
    titles = [axes.get_title(loc="left") for axes in DRAW["distill_losses"](make_summary(methods=("no_triplet",))).axes]
    assert len(titles) == 4
    assert not any("L_tri" in title for title in titles)


def test_posteriors_have_a_row_a_parameter_and_a_panel_a_method(two):
    titles = [axes.get_title(loc="left") for axes in DRAW["posteriors"](two).axes if axes.get_title(loc="left")]
    assert titles == ["full, seed 0", "no triplet, seed 0"] * 2


def test_posteriors_of_many_methods_share_a_bar_and_stay_on_a_page(many):
    figure = DRAW["posteriors"](many)
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    bars_beside = [axes.get_ylabel() for axes in figure.axes if axes not in titled]
    assert len(titled) == 2 * 8
    assert bars_beside == [f"goal (x, y) in metres, part {part}" for part in (1, 2)]
    assert figure.get_figheight() < 11


def test_posteriors_keep_distances_of_means_that_lie_in_a_plane(two):
    make = np.random.default_rng(5)
    record = two["posteriors"][0]
    basis = np.linalg.qr(make.normal(size=(5, 2)))[0]
    means = make.normal(size=(len(record["task"]), 2)) @ basis.T
    training, unseen, *_ = (
        DRAW["posteriors"](two | {"posteriors": [record | {"mean": means.tolist()}]}).axes[0].collections
    )
    place = np.concatenate([points(training), points(unseen)])
    assert np.allclose(np.linalg.norm(place[0] - place[1:], axis=1), np.linalg.norm(means[0] - means[1:], axis=1))


def test_posteriors_of_one_dimension_and_one_parameter(two):
    tasks = {
        split: [task | {"features": task["features"][:1]} for task in rows] for split, rows in two["tasks"].items()
    }
    record = two["posteriors"][0]
    flat = record | {"mean": [[float(task)] for task in record["task"]]}
    titles = [
        axes.get_title(loc="left") for axes in DRAW["posteriors"](two | {"tasks": tasks, "posteriors": [flat]}).axes
    ]
    assert titles == ["full, seed 0", ""]  # the picture and its colour bar


def test_relabelling_leaves_out_errors_that_were_not_measured(two):
    changed = two | {"relabel": two["relabel"] | {"error_eligible": None, "error_all": None}}
    titles = [axes.get_title(loc="left") for axes in DRAW["relabelling"](changed).axes]
    assert len([title for title in titles if title]) == 1


def test_reward_swap_marks_chance(two):
    (axes,) = DRAW["reward_swap"](two).axes
    levels = [style(line, "ydata")[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert levels == pytest.approx([1 / 3])


def test_reward_swap_bars_are_means_and_dots_are_seeds(two):
    (axes,) = DRAW["reward_swap"](two).axes
    assert [bar.get_height() for bar in bars(axes)[:2]] == pytest.approx([0.355] * 2)
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert list(style(dots[0], "ydata")) == pytest.approx([0.33, 0.38])
    assert len(dots) == 3 * 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["full\n2 seeds", "no triplet\n2 seeds"]


def test_reward_swap_of_single_seeds_has_its_numbers_on_the_bars(make_summary):
    (axes,) = DRAW["reward_swap"](make_summary()).axes
    assert [text.get_text() for text in axes.texts] == ["33%", "19%", "48%"]
    assert not [line for line in axes.lines if line.get_marker() == "."]


def test_comparison_shows_the_numbers_of_the_table(two):
    (axes,) = DRAW["comparison"](two).axes
    rows = [row for row in comparison.rows(two, "test") if row.epoch == "last"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["full", "no triplet"]
    dots = [style(line, "xdata")[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [row.iqm.value for row in rows]
    assert list(style(axes.lines[0], "xdata")) == [rows[0].iqm.low, rows[0].iqm.high]
    seeds = next(line for line in axes.lines if line.get_marker() == "|")
    last = [run["test"][-1] for run in two["evaluation"] if run["method"] == "full"]
    assert list(style(seeds, "xdata")) == pytest.approx([statistics.iqm(scores) for scores in last])
    levels = [style(line, "xdata")[0] for line in axes.lines[-4:]]
    assert levels == pytest.approx([np.mean(values) for values in two["references"]["test"].values()])


def test_identification_draws_means_over_seeds_and_chance(two):
    (axes,) = DRAW["identification"](two).axes
    shares = [row["identification"] for row in two["probes"] if row["method"] == "no_triplet"]
    assert np.allclose(style(axes.lines[1], "ydata"), np.mean(shares, axis=0))
    assert style(axes.lines[-1], "ydata")[0] == pytest.approx(1 / 3)
    low, high = axes.collections[1].get_datalim(axes.transData).intervaly
    assert (low, high) == pytest.approx((np.min(shares), np.max(shares)))


def test_foreign_contexts_pairs_the_nearest_with_the_farthest(two):
    (axes,) = DRAW["foreign_contexts"](two).axes
    own = [row["foreign_contexts"] for row in two["probes"] if row["method"] == "full"]
    expected = [np.mean([seed[source] for seed in own]) for source in ("nearest", "farthest")]
    assert list(style(axes.lines[0], "xdata")) == pytest.approx(expected)
    small = [line for line in axes.lines if line.get_markersize() == 3.5]
    assert list(style(small[1], "xdata")) == pytest.approx([np.mean(seed["farthest"]) for seed in own])
    assert len(small) == 2 * 2


def test_many_methods_are_drawn_by_their_means_alone(many):
    unseen = DRAW["learning"](many).axes[0]
    assert len([line for line in unseen.lines if line.get_marker() == "o"]) == 8
    assert not [line for line in unseen.lines if line.get_linestyle() == ":" and len(style(line, "xdata")) > 2]
    assert len(DRAW["episodes"](many).axes[0].lines) == 8
    losses = {axes.get_title(loc="left"): axes for axes in DRAW["distill_losses"](many).axes}
    assert len(losses["L_Q: distilled value"].lines) == 6
    runs = [run["loss_q"] for run in many["distill"] if run["method"] == "full"]
    assert np.allclose(style(losses["L_Q: distilled value"].lines[0], "ydata"), np.mean(runs, axis=0))


def test_many_methods_become_a_map_of_tasks(many):
    unseen = DRAW["per_task"](many).axes[0]
    scores = [run["test"][-1] for run in many["evaluation"] if run["method"] == "batch_pearl"]
    names = [tick.get_text() for tick in unseen.get_yticklabels()]
    assert names[7:10] == ["batch PEARL", "random", "zero action"]
    table = np.asarray(unseen.collections[0].get_array()).reshape(len(names), 4)
    assert np.allclose(table[7], np.mean(scores, axis=0))
    assert unseen.texts[7 * 4].get_text() == f"{table[7, 0]:.0f}"


def test_losses_of_other_learners_have_panels_of_their_own(many):
    losses = {axes.get_title(loc="left"): axes for axes in DRAW["distill_losses"](many).axes}
    colours = method_colours(many)
    assert [style(line, "color") for line in losses["vae loss"].lines] == [colours["contextual_bcq"]]
    assert [style(line, "color") for line in losses["kl"].lines] == [colours["contextual_bcq"], colours["batch_pearl"]]


def test_seeds_that_stopped_early_shorten_their_mean(many):
    changed = many | {"distill": [dict(run) for run in many["distill"]]}
    for field in ("step", "loss_q"):
        changed["distill"][0][field] = changed["distill"][0][field][:4]
    axes = DRAW["distill_losses"](changed).axes[0]
    assert list(style(axes.lines[0], "xdata")) == [500, 1000, 1500, 2000]


@pytest.mark.parametrize("name", DRAW)
def test_one_task_one_step_and_nulls_draw_without_a_warning(name, make_summary):
    summary = plain(make_summary(train=1, test=1))
    summary["references"]["test"]["random"] = [None]
    summary["cost"][0]["peak_memory_mb"] = None
    summary["collect"]["curves"][0]["return"][0] = None
    for run in summary["evaluation"]:
        for field in ("step", "test", "train"):
            run[field] = run[field][-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DRAW[name](summary).savefig(io.BytesIO(), dpi=40)


def test_methods_keep_their_colour_whatever_section_is_drawn(two):
    colours = method_colours(two)
    assert list(colours) == ["full", "no_triplet"]
    bar = bars(DRAW["per_task"](two).axes[0])[-1]
    line = DRAW["distill_losses"](two).axes[0].lines[-1]
    assert to_hex(bar.get_facecolor()) == style(line, "color").lower() == colours["no_triplet"].lower()


def test_a_method_has_its_colour_in_every_summary_and_points_of_a_grid_take_the_others():
    def colours(*names: str) -> dict[str, str]:
        return method_colours({"evaluation": [{"method": name} for name in names]})

    assert colours("neither", "full")["neither"] == colours("full", "no_triplet", "neither")["neither"]
    grid = colours("margin=0", "full", "margin=2", "margin=4")
    assert len(set(grid.values())) == 4
    assert list(grid) == ["margin=0", "full", "margin=2", "margin=4"]


def test_spread_keeps_order_gap_and_ceiling():
    placed = spread([0.0, 0.1, 9.9, 10.0], 1.0, 10.0)
    assert placed == pytest.approx([0.0, 1.0, 9.0, 10.0])
    assert all(math.isfinite(value) for value in placed)
