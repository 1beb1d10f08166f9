"""The report of the warm-start experiment, on made-up curves that rise towards a level of their own."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pipeline.publish import publish
from pipeline.report.drawing import draw
from pipeline.report.statistics import Estimate, resampled, shares
from pipeline.report.warmstart import Reached, arms, crossing, points, reached, warmstart_page
from pipeline.results import Results, ResultsError, tidy


@pytest.fixture
def simple(synthetic):
    """One seed; returns per task."""

    def make(warm: list, cold: list, step: list[int] | None = None) -> Results:
        step, tasks = step or [0, 10, 20], list(range(len(cold)))
        where: dict[str, Any] = {"seed": 0, "split": "test", "task": tasks}
        parts = [tidy("return", "task step", cold, method="sac", step=[0, 10, 20], **where)]
        parts.append(tidy("return", "task step", warm, method="warm_full", step=step, **where))
        return synthetic.curves_of(parts, {"sac": 0, "warm_full": step[0]}, len(tasks))

    return make


def reached_of(results: Results, stay: bool = False, cold: str = "sac") -> tuple[Reached, Reached]:
    """When the warm arm and a cold one reach the level."""
    found = arms(results)
    draws = dict(zip(found, resampled(*(arm.returns for arm in found.values())), strict=True))
    warm, other = (reached(found[name], found["sac"], draws, stay) for name in ("warm_full", cold))
    return warm, other


def ratio_of(results: Results) -> Estimate:
    warm, cold = reached_of(results)
    return warm.ratio(cold).estimate()


def page(results: Results, folder) -> str:
    return " ".join(warmstart_page(results, folder).render("md").split())


def cross(step, curve, goal, stay=False) -> float:
    """Brute-force twin: walk along the curve."""
    if math.isnan(goal):
        return math.nan
    for place, value in enumerate(curve):
        if value >= goal and (not stay or min(curve[place:]) >= goal):
            if place == 0:
                return max(step[0], 1)
            before = curve[place - 1]
            share = (goal - before) / (value - before) if before < goal else 0
            return max(step[place - 1] + share * (step[place] - step[place - 1]), 1)
    return math.inf


def goal_of(curve) -> float:
    return curve[0] + 0.9 * (curve[-1] - curve[0]) if curve[-1] > curve[0] else math.nan


@pytest.mark.parametrize("stay", [False, True])
def test_crossing_agrees_with_a_walk_along_the_curve(stay):
    make = np.random.default_rng(1)
    step = np.array([0, 3, 7, 20, 21])
    curves, goals = make.normal(0, 1, (500, 5)), make.normal(0.5, 1, 500)
    goals[:20] = math.nan
    expected = [cross(step, curve, goal, stay) for curve, goal in zip(curves, goals, strict=True)]
    found = crossing(step, curves, goals, stay)
    np.testing.assert_allclose(found, expected)
    assert np.isinf(found).any()
    assert (found == 1).any()


def test_bootstrap_agrees_with_loops_over_the_same_draws(synthetic):
    found = arms(synthetic.warmstart(seeds=2, tasks=4))
    drawn = resampled(*(arm.returns for arm in found.values()), seed=3, resamples=200)
    draws = dict(zip(found, drawn, strict=True))
    make = np.random.default_rng(3)
    task_shares, seed_shares = shares(4, make, 200), {name: shares(2, make, 200) for name in found}
    warm, cold = found["warm_full"], found["sac"]
    ratios = []
    for row in range(200):
        tasks = [task for task, share in enumerate(task_shares[row]) for _ in range(round(share * 4))]
        means = {}
        for arm in (warm, cold):
            seeds = [seed for seed, share in enumerate(seed_shares[arm.name][row]) for _ in range(round(share * 2))]
            means[arm.name] = np.mean([arm.returns[seed, :, task] for seed in seeds for task in tasks], axis=0)
        goal = goal_of(means["sac"])
        slow, fast = (cross(arm.step, means[arm.name], goal, stay=True) for arm in (cold, warm))
        ratios.append(fast / slow)
    mine, other = (reached(arm, cold, draws, stay=True) for arm in (warm, cold))
    ratio, ordered = mine.ratio(other).estimate(), sorted(ratios)
    assert ratio.low == pytest.approx(ordered[math.ceil(0.025 * 200) - 1])
    assert ratio.high == pytest.approx(ordered[math.ceil(0.975 * 200) - 1])
    assert ratio.low < ratio.value < ratio.high


def test_numbers_of_curves_done_by_hand(simple, tmp_path):
    # Level 0.9 of the way from -100 to 0 is -10: cold crosses at 19, warm between 10 and 20 at 15.
    results = simple([[-60.0, -30.0, 10.0]], [[-100.0, -100.0, 0.0]], step=[5, 10, 20])
    warm, cold = reached_of(results)
    assert (warm.mean, cold.mean) == (pytest.approx(15), pytest.approx(19))
    assert ratio_of(results) == pytest.approx((15 / 19,) * 3)
    assert "took 0.79 times the steps of SAC from scratch: 15 against 19 environment steps" in page(results, tmp_path)


def test_a_noisy_curve_that_falls_back_is_late_to_stay(simple, tmp_path):
    results = simple([[0.0, 10.0, 0.0, 10.0]], [[0.0, 5.0, 10.0]], step=[0, 5, 10, 20])
    assert reached_of(results)[0].mean == pytest.approx(4.5)
    assert reached_of(results, stay=True)[0].mean == pytest.approx(19)
    text = page(results, tmp_path)
    assert "stay above it, SAC from the policy took 1.06 times" in text  # 19 against 18
    assert "which noise brings forward, SAC from the policy took 0.25 times" in text


def test_a_policy_above_the_level_counts_the_steps_before_and_at_least_one(simple):
    assert reached_of(simple([[9.5, 9.0, 9.0]], [[0.0, 5.0, 10.0]], step=[4, 10, 20]))[0].mean == 4
    assert reached_of(simple([[9.5, 9.0, 9.0]], [[0.0, 5.0, 10.0]]))[0].mean == 1


def test_a_curve_that_never_reaches_is_infinite_and_said(simple, tmp_path):
    results = simple([[1.0, 2.0, 3.0], [0.0, 9.0, 12.0]], [[0.0, 5.0, 10.0], [0.0, 5.0, 10.0]])
    warm, _ = reached_of(results)
    assert math.isinf(warm.mean)
    assert math.isinf(ratio_of(results).value)
    assert np.isinf(warm.draws).mean() == pytest.approx(0.75, abs=0.02)  # all but two draws of the second task
    assert np.isfinite(warm.tasks).tolist() == [False, True]
    text = page(results, tmp_path)
    assert "SAC from the policy did not, SAC from scratch did (not within 20 against 18" in text
    assert "| 1 of 2 | 7" in text


def test_plain_sac_that_does_not_improve_has_no_level(simple, tmp_path):
    results = simple([[1.0, 2.0, 3.0]], [[0.0, 5.0, -1.0]])
    assert math.isnan(ratio_of(results).value)
    text = page(results, tmp_path)
    assert "Plain SAC did not improve" in text
    assert "there is no level" in text


def test_a_shift_of_all_returns_below_zero_changes_no_ratio(synthetic):
    high, low = (ratio_of(synthetic.warmstart(shift=shift)) for shift in (0.0, -5000.0))
    assert low == pytest.approx(high)


def test_returns_at_equal_steps_are_on_the_range_that_all_arms_share(simple, tmp_path):
    results = simple([[4.0, 6.0, 6.0]], [[0.0, 10.0, 0.0]], step=[5, 15, 25])
    frame = warmstart_page(results, tmp_path).tables["Return at equal numbers of environment steps"]
    assert list(frame.index) == ["step 5", "step 9", "step 12", "step 16", "step 20", "mean over these steps"]
    assert float(str(frame.loc["mean over these steps", "SAC from scratch"])) == pytest.approx(
        (5 * 7.5 + 10 * 5) / 15, abs=0.1
    )
    assert float(str(frame.loc["mean over these steps", "SAC from the policy"])) == pytest.approx(
        (50 + 30) / 15, abs=0.1
    )
    lead = frame.loc["step 20", "lead of SAC from the policy (95 %)"]
    assert float(str(lead)) == pytest.approx(6)


def test_arms_without_common_steps_have_no_such_table(simple, tmp_path):
    results = simple([[4.0, 6.0, 6.0]], [[0.0, 10.0, 20.0]], step=[50, 60, 70])
    assert "Return at equal" not in page(results, tmp_path)


def test_everything_is_published_and_the_first_sentence_is_about_staying(synthetic, tmp_path):
    said = []
    publish(synthetic.warmstart(), tmp_path, said.append, warmstart_page)
    pictures = {"figure-08.png", "figure-12.png", "figure-13.png"}
    others = {"results.parquet", "run.json", "curves.jsonl", "report.html", "report.md", "tensorboard"}
    assert {path.name for path in tmp_path.iterdir()} == pictures | others
    drawing, tables = said
    assert drawing == "drawing the report"
    assert tables.startswith("To reach 90 % of plain SAC's improvement and stay above it")
    assert "![Against SAC with the same two batches](figure-13.png)" in (tmp_path / "report.md").read_text()


def test_missing_arms_become_sentences(synthetic, tmp_path):
    (tmp_path / "figure-12.png").write_bytes(b"from an earlier call")
    text = page(synthetic.warmstart(("sac", "warm_full")), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["figure-08.png"]
    assert "needs an arm that was not run: SAC from the policy without ensembles." in text
    assert "No headline, for want of an arm: SAC from scratch." in page(
        synthetic.warmstart(("warm_full", "sac_two_batches")), tmp_path
    )
    with pytest.raises(ResultsError, match="No run of the warm-start experiment"):
        warmstart_page(synthetic.results(), tmp_path)


def test_the_first_method_has_the_headline_and_the_pictures(synthetic, tmp_path):
    text = page(synthetic.warmstart(("sac", "warm_evidence", "sac_two_batches")), tmp_path)
    assert "To reach 90 % of plain SAC's improvement and stay above it, SAC from the policy evidence took " in text
    assert {file.name for file in tmp_path.iterdir()} == {"figure-08.png", "figure-13.png"}


def test_axis_after_warmup_hides_what_lies_before_the_first_update(synthetic):
    arm = arms(synthetic.warmstart(("warm_full",)))["warm_full"]
    arm = arm._replace(step=np.array([100, 150, 200, 230, *range(300, 308)]))
    x, kept = points(arm, "after_warmup")
    assert x.tolist() == [0, 30, *range(100, 108)]
    assert kept.tolist() == [0, *range(3, 12)]
    assert points(arm, "all_steps")[0].tolist() == arm.step.tolist()


@pytest.mark.parametrize(("axis", "start"), [("all_steps", [0, 100]), ("after_warmup", [0, 0])])
def test_figure_8_draws_the_means_on_the_axis(synthetic, axis, start):
    results = synthetic.warmstart()
    axes = draw("figure-08", dataclasses.replace(results, run=results.run | {"axis": axis})).axes[0]
    found = arms(results)
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]
    for line, name, first in zip(lines, ("sac", "warm_full"), start, strict=True):
        assert np.asarray(line.get_xdata())[0] == first
        np.testing.assert_allclose(np.asarray(line.get_ydata()), found[name].mean)


def test_papers_comparison_draws_the_training_tasks(synthetic, tmp_path):
    results = synthetic.warmstart()
    paper = dataclasses.replace(results, run=results.run | {"comparison": "paper"})
    line = draw("figure-08", paper).axes[0].lines[0]
    assert np.asarray(line.get_ydata()).tolist() == [0, 305.5, 700]
    assert "the comparison is unequal" in page(paper, tmp_path)
    without = paper.table[paper.table["split"] != "train"]
    assert "not run: SAC from scratch, training tasks" in page(dataclasses.replace(paper, table=without), tmp_path)


def test_runs_that_do_not_agree_are_refused(synthetic, tmp_path):
    results = synthetic.warmstart()
    with pytest.raises(ResultsError, match="need the same tasks and steps"):
        warmstart_page(dataclasses.replace(results, table=results.table.iloc[1:]), tmp_path)
