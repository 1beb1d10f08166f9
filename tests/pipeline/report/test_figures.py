import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pipeline.report import paper
from pipeline.report.drawing import FIGURES, MissingData, draw, picture
from pipeline.report.mechanism import plane
from pipeline.report.page import SECTIONS
from pipeline.report.wording import colours

MANY = ("full", "no_triplet", "neither", "no_ensemble", "contextual_bcq")
OF_A_RUN = [name for name, entry in FIGURES.items() if entry.section in SECTIONS]
OF_THE_PAPER = [name for name, entry in FIGURES.items() if entry.section == paper.PAPER]


@pytest.fixture(scope="module")
def two(synthetic):
    return synthetic.results(("full", "no_triplet"))


@pytest.fixture(scope="module")
def many(synthetic):
    return synthetic.results(MANY, seeds=3)


def without_numbers(results):
    return dataclasses.replace(results, table=results.table.iloc[:0], run=results.run | {"cost": [], "timeline": []})


def x(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xdata())


def y(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata())


def entries(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_report_and_the_paper_have_their_figures():
    assert len(OF_A_RUN) >= 15  # and those of your own
    assert [f"figure-{number}" for number in ("02", "04", "05", "06", "07", "11")] == OF_THE_PAPER


@pytest.mark.parametrize("name", OF_A_RUN)
def test_every_figure_is_a_real_picture_of_few_and_of_many(name, two, many, tmp_path):
    for results in (two, many):
        drawn = picture(name, results, tmp_path)
        assert drawn.file is not None, drawn.text
        assert drawn.file.read_bytes().startswith(b"\x89PNG")
        assert len(drawn.text) > 60


@pytest.mark.parametrize("name", OF_A_RUN)
def test_one_task_one_seed_and_one_method_draw_without_a_warning(name, synthetic, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(name, synthetic.results(seeds=1, train=2, test=1), tmp_path).file is not None


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_THE_PAPER])
def test_missing_data_is_said_in_a_sentence_and_an_older_picture_goes(name, two, tmp_path):
    (tmp_path / f"{name}.png").write_bytes(b"from an earlier report")
    drawn = picture(name, without_numbers(two), tmp_path)
    assert drawn.file is None
    assert drawn.text.startswith("Left out: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_papers_figures_are_drawn(name, many, tmp_path):
    assert picture(name, many, tmp_path).file is not None


def test_learning_draws_the_means_and_the_references(two):
    axes = draw("learning", two).axes[0]
    steps, scores = two.scores("full", "test")
    assert x(axes.lines[0]).tolist() == steps.tolist()
    np.testing.assert_allclose(y(axes.lines[0]), scores.mean(axis=(0, 2)))
    heights = [y(line)[0] for line in axes.lines if len(y(line)) == 2]
    for values in two.references("test").values():
        assert values.mean() in heights
    assert set(entries(draw("learning", two))) >= {"random", "blind", "nearest", "own teacher", "full"}


def test_comparison_sets_the_first_method_against_every_row(two):
    left, right = draw("comparison", two).axes
    rows = [label.get_text() for label in left.get_yticklabels()]
    assert rows[:3] == ["full", "no triplet", "random"]
    gap = two.scores("full", "test")[1][:, -1].mean() - two.references("test")["random"].mean()
    points = [x(line)[0] for line in right.lines if y(line)[0] == 2 and len(x(line)) == 1]
    assert points == [pytest.approx(gap)]


def test_per_task_marks_are_means_over_seeds(two):
    axes = draw("per_task", two).axes[0]
    np.testing.assert_allclose(y(axes.lines[0]), two.scores("full", "test")[1][:, -1].mean(axis=0))


def test_reward_swap_bars_are_means_over_seeds(two):
    figure = draw("reward_swap", two)
    heights = [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert heights == pytest.approx([0.355] * 2 + [0.19] * 2 + [0.455] * 2)
    assert "chance, 1/3" in entries(figure)


def test_teachers_are_marked_where_they_were_selected(two):
    marked = [line for axes in draw("teacher_curves", two).axes for line in axes.lines if line.get_marker() == "o"]
    assert [(x(line)[0], y(line)[0]) for line in marked] == [(2500, 220.0)] * 3


def test_losses_are_logarithmic_but_for_the_triplet(many):
    axes = {axes.get_title(loc="left"): axes for axes in draw("distill_losses", many).axes}
    assert axes["L_Q: distilled value"].get_yscale() == "log"
    assert axes["L_tri: triplet (linear scale)"].get_yscale() == "linear"
    assert "vae loss" in axes


def test_losses_of_a_single_step_are_no_panel(two):
    single = two.table[two.table["metric"] == "training/loss_q"].head(1)
    bank = single.assign(method="bank", metric="training/error_reward", step=1)
    with_bank = dataclasses.replace(two, table=pd.concat([two.table, bank], ignore_index=True))
    axes = [[axes.get_title(loc="left") for axes in draw("distill_losses", each).axes] for each in (two, with_bank)]
    assert axes[0] == axes[1]


def test_the_plane_keeps_distances_of_means_that_lie_in_one():
    flat = np.random.default_rng(0).normal(size=(9, 2)) @ np.random.default_rng(1).normal(size=(2, 5))
    place, share = plane(flat)
    np.testing.assert_allclose(np.linalg.norm(place[0] - place[3]), np.linalg.norm(flat[0] - flat[3]))
    assert share.sum() == pytest.approx(1)


def test_relabelling_leaves_out_errors_that_were_not_measured(two):
    known = two.table[~two.table["metric"].str.startswith("relabel_error")]
    figure = draw("relabelling", dataclasses.replace(two, table=known))
    assert sum(bool(axes.images) for axes in figure.axes) == 1


def test_a_method_has_its_colour_everywhere_and_points_of_a_grid_take_the_others():
    assert colours(["full"])["full"] == colours(MANY)["full"]
    points = colours(["full", *(f"margin={n}" for n in range(8))])
    assert len(set(points.values())) == 9


def test_figure_4_compares_best_epochs_with_the_sign(many):
    rivals = many.table[many.table["method"].isin(["full", "contextual_bcq"])].copy()
    share, rival = paper.gain(dataclasses.replace(many, table=rivals))
    assert rival == "contextual_bcq"
    assert share > 0
    rivals["value"] -= 1000  # all returns below zero: the better method is still the better one
    assert paper.gain(dataclasses.replace(many, table=rivals))[0] > 0


def test_figure_2_has_the_loss_above_the_return_on_training_tasks(many):
    top, bottom = draw("figure-02", many).axes
    assert top.get_yscale() == "log"
    np.testing.assert_allclose(y(bottom.lines[0]), many.scores("neither", "train")[1].mean(axis=(0, 2)))
    assert "own teacher" in entries(bottom.get_figure())


def test_figure_5_has_a_line_a_seed_and_the_level_of_full(two):
    axes = draw("figure-05", two).axes[0]
    assert len(axes.lines) == 3
    assert y(axes.lines[2])[0] == pytest.approx(two.scores("full", "test")[1][:, -1].mean())


def test_figure_7_averages_over_the_tasks_that_kept_rows(many):
    table = many.table[many.table["method"].isin(["full", "no_ensemble"])]
    first = (table["metric"] == "relabel_training_error") & (table["step"] == 100) & (table["task"] == 0)
    axes = draw("figure-07", dataclasses.replace(many, table=table[~first])).axes[0]
    rows = table[~first & (table["metric"] == "relabel_training_error") & (table["method"] == "full")]
    np.testing.assert_allclose(y(axes.lines[0]), rows.groupby("step")["value"].mean())


def test_figure_11_needs_two_margins(synthetic):
    figure = draw("figure-11", synthetic.results(("margin=2", "margin=4")))
    assert entries(figure) == ["margin=2 (2 seeds)", "margin=4 (2 seeds)"]
    assert to_rgba(figure.axes[0].lines[0].get_color()) != to_rgba(figure.axes[0].lines[1].get_color())
    with pytest.raises(MissingData, match="triplet_margin"):
        draw("figure-11", synthetic.results(("margin=2",)))


def test_the_timeline_has_a_row_per_process_by_machine_and_crosses_out_what_was_lost(two):
    made = draw("timeline", two)
    (axes,) = made.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["2: 10.0.0.1 a", "3: 10.0.0.1 a", "1: 10.0.0.2 b"]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 5 / 60, 2])
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True, False]
    assert entries(made) == ["collect", "teach"]
