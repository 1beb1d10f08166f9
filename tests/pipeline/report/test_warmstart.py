"""The report of the warm-start experiment, on made-up curves that rise towards a level of their own."""

import json
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.report import warmstart_figures as figures
from pipeline.report import warmstart_numbers as numbers
from pipeline.report.summary import MissingData, SummaryError
from pipeline.report.warmstart import headline, result_rows, table, write_warmstart

ARMS = {  # steps before, return before RL, steps of the rise, share of the level
    "sac": (0, 0.0, 90.0, 1.0),
    "sac_two_batches": (0, 0.0, 110.0, 0.95),
    "warm_full": (100, 500.0, 60.0, 1.05),
    "warm_no_ensemble": (100, 300.0, 80.0, 1.0),
}


def run(arm: str, seed: int, step: list[int], returns: Any, initial: int = 0, warmup: int = 0) -> dict:
    curves = [{"task": task, "step": step, "return": list(row)} for task, row in enumerate(returns)]
    policy = [float(row[0]) + 50 for row in returns] if initial else None
    return {
        "arm": arm,
        "seed": seed,
        "initial_steps": initial,
        "warmup_steps": warmup,
        "curves": curves,
        "policy_return": policy,
    }


def made(arms: Any = tuple(ARMS), seeds: int = 3, tasks: int = 6, shift: float = 0.0) -> dict:
    make = np.random.default_rng(0)
    levels = make.normal(900, 120, tasks)
    runs = []
    for arm in arms:
        initial, start, rise, share = ARMS[arm]
        step = [initial, *range(initial + 130, initial + 460, 30)]
        after = np.maximum(np.array(step) - initial - 100, 0)
        for seed in range(seeds):
            curves = share * levels[:, None] - (share * levels[:, None] - start) * np.exp(-after / rise)
            noisy = curves + make.normal(0, 25, curves.shape) + shift
            runs.append(run(arm, seed, step, noisy.tolist(), initial, 100))
    training = [{"task": task, "step": [0, 200, 400], "return": [0.0, 300.0 + task, 700.0]} for task in (4, 7)]
    labels = [{"index": task, "label": f"t{task}", "features": [task]} for task in range(tasks)]
    return {
        "environment": "ant_dir",
        "paper_name": "AntDir",
        "preset": "tiny",
        "seed": 0,
        "horizon": 200,
        "parameter": "direction",
        "tasks": {"test": labels, "train": []},
        "warmstart": runs,
        "training_curves": training,
    }


def simple(warm: list, cold: list, step: list[int] | None = None) -> dict:
    """One seed; returns per task."""
    step = step or [0, 10, 20]
    runs = [run("sac", 0, [0, 10, 20], cold), run("warm_full", 0, step, warm, initial=step[0])]
    return {"environment": "ant_dir", "warmstart": runs}


def cross(step, curve, goal) -> float:
    """Brute-force twin: walk along the curve."""
    if math.isnan(goal):
        return math.nan
    for place, value in enumerate(curve):
        if value >= goal:
            if place == 0:
                return max(step[0], 1)
            share = (goal - curve[place - 1]) / (value - curve[place - 1])
            return max(step[place - 1] + share * (step[place] - step[place - 1]), 1)
    return math.inf


def goal_of(curve) -> float:
    return curve[0] + 0.9 * (curve[-1] - curve[0]) if curve[-1] > curve[0] else math.nan


def test_crossing_agrees_with_a_walk_along_the_curve():
    make = np.random.default_rng(1)
    step = np.array([0, 3, 7, 20, 21])
    curves, goals = make.normal(0, 1, (500, 5)), make.normal(0.5, 1, 500)
    goals[:20] = math.nan
    expected = [cross(step, curve, goal) for curve, goal in zip(curves, goals, strict=True)]
    found = numbers.crossing(step, curves, goals)
    np.testing.assert_allclose(found, expected)
    assert np.isinf(found).any()
    assert (found == 1).any()


def test_bootstrap_agrees_with_loops_over_the_same_draws():
    arms = numbers.arms(made(seeds=2, tasks=4))
    drawn = numbers.draws(arms, seed=3, resamples=200)
    warm, cold, plain = (arms[name] for name in ("warm_full", "sac_two_batches", "sac"))
    ratios = []
    for row in range(200):
        tasks = [task for task, share in enumerate(drawn.tasks[row]) for _ in range(round(share * 4))]
        means = {}
        for arm in (warm, cold, plain):
            seeds = [seed for seed, share in enumerate(drawn.seeds[arm.name][row]) for _ in range(round(share * 2))]
            means[arm.name] = np.mean([arm.returns[seed, task] for seed in seeds for task in tasks], axis=0)
        goal = goal_of(means["sac"])
        slow, fast = (cross(arm.step, means[arm.name], goal) for arm in (cold, warm))
        ratios.append(fast / slow)
    found = numbers.speed(warm, cold, plain, drawn)
    ordered = sorted(ratios)
    assert found.ratio.low == pytest.approx(ordered[math.ceil(0.025 * 200) - 1])
    assert found.ratio.high == pytest.approx(ordered[math.ceil(0.975 * 200) - 1])
    assert found.ratio.low < found.ratio.value < found.ratio.high
    assert found.ratio.over == "tasks and seeds"


def test_draws_pair_the_tasks_and_keep_each_number():
    drawn = numbers.draws(numbers.arms(made(seeds=2)))
    assert drawn.tasks.shape == (9999, 6)
    assert np.allclose(drawn.tasks.sum(axis=1), 1)
    assert not np.array_equal(drawn.seeds["sac"], drawn.seeds["warm_full"])


def test_headline_of_curves_done_by_hand():
    # Level 0.9 of the way from -100 to 0 is -10: cold crosses at 19, warm between 10 and 20 at 15.
    summary = simple([[-60.0, -30.0, 10.0]], [[-100.0, -100.0, 0.0]], step=[5, 10, 20])
    found = headline(summary)
    speed = found["speeds"][0]
    assert found["level"] == {"before": -100, "final": 0, "value": -10, "share": 0.9, "improved": True}
    assert (speed["warm_steps"], speed["cold_steps"]) == (pytest.approx(15), pytest.approx(19))
    assert speed["ratio"] == {key: pytest.approx(15 / 19) for key in ("value", "low", "high")} | {"over": "nothing"}
    assert "width zero" in table(summary)


def test_a_policy_above_the_level_counts_the_steps_before_and_at_least_one():
    later = headline(simple([[9.5, 9.0, 9.0]], [[0.0, 5.0, 10.0]], step=[4, 10, 20]))
    at_once = headline(simple([[9.5, 9.0, 9.0]], [[0.0, 5.0, 10.0]]))
    assert later["speeds"][0]["warm_steps"] == 4
    assert at_once["speeds"][0]["warm_steps"] == 1


def test_a_curve_that_never_reaches_is_infinite_and_null_in_json(tmp_path):
    summary = simple([[1.0, 2.0, 3.0], [0.0, 9.0, 12.0]], [[0.0, 5.0, 10.0], [0.0, 5.0, 10.0]])
    speed = headline(summary)["speeds"][0]
    assert speed["warm_steps"] is None
    assert speed["warm_reached"] is False
    assert speed["ratio"]["value"] is None
    assert speed["ratio_bounded"] is False
    assert speed["warm_missed"] == pytest.approx(0.75, abs=0.02)  # all but two draws of the second task
    assert (speed["tasks_reached"], speed["tasks_improved"]) == (1, 2)
    text = table(summary)
    assert "did not reach" in text
    assert "not within 20" in text
    write_warmstart(summary, tmp_path)
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["headline_warmstart"]["speeds"][0]["warm_steps"] is None


def test_only_the_warm_start_reaches():
    summary = made(seeds=1)
    for one in summary["warmstart"]:
        if one["arm"] == "sac_two_batches":
            for curve in one["curves"]:
                curve["return"] = [0.0] * len(curve["step"])
    speed = headline(summary)["speeds"][1]
    assert speed["cold"] == "sac_two_batches"
    assert (speed["ratio"]["value"], speed["cold_reached"], speed["cold_missed"]) == (0, False, 1)
    assert "two mini-batches did not: " in " ".join(table(summary).split())


def test_plain_sac_that_does_not_improve_has_no_level(tmp_path):
    summary = simple([[1.0, 2.0, 3.0]], [[0.0, 5.0, -1.0]])
    found = headline(summary)
    assert found["level"]["improved"] is False
    assert found["speeds"][0]["ratio"]["value"] is None
    assert found["speeds"][0]["not_improved"] == 1
    assert "Plain SAC did not improve" in table(summary)
    write_warmstart(summary, tmp_path)
    assert "No level: SAC from scratch did not improve." in (tmp_path / "report.md").read_text()


def test_a_shift_of_all_returns_below_zero_changes_no_ratio():
    high, low = (headline(made(shift=shift))["speeds"][0] for shift in (0.0, -5000.0))
    assert low["ratio"]["value"] == pytest.approx(high["ratio"]["value"])
    assert low["ratio"]["high"] == pytest.approx(high["ratio"]["high"])


def test_one_seed_resamples_tasks_alone():
    assert headline(made(seeds=1))["speeds"][0]["ratio"]["over"] == "tasks"


def test_area_is_the_mean_over_the_steps_that_all_arms_share():
    summary = simple([[4.0, 6.0, 6.0]], [[0.0, 10.0, 0.0]], step=[5, 15, 25])
    found = headline(summary)
    assert found["area_span"] == [5, 20]
    assert found["arms"]["sac"]["area"]["value"] == pytest.approx((5 * 7.5 + 10 * 5) / 15)
    assert found["arms"]["warm_full"]["area"]["value"] == pytest.approx((10 * 5 + 5 * 6) / 15)


def test_arms_without_common_steps_have_no_area():
    summary = simple([[4.0, 6.0, 6.0]], [[0.0, 10.0, 20.0]], step=[50, 60, 70])
    assert headline(summary)["arms"]["sac"]["area"]["value"] is None
    assert "no range of steps in common" in table(summary)


def test_all_files_are_written_and_the_table_is_narrow(tmp_path):
    summary = made()
    files = write_warmstart(summary, tmp_path / "new")
    names = ["figure-08.png", "figure-12.png", "figure-13.png"]
    assert {file.name for file in files} == {*names, "summary.json", "results.csv", "results.parquet", "report.md"}
    assert {file.name for file in (tmp_path / "new").iterdir()} == {file.name for file in files}
    for name in names:
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    rows = pq.read_table(tmp_path / "new" / "results.parquet").to_pylist()
    assert rows == result_rows(summary)
    assert len(rows) == 4 * 3 * 6 * 12
    assert rows[0]["steps_after_warmup"] == -100
    assert len((tmp_path / "new" / "results.csv").read_text().splitlines()) == len(rows) + 1
    text = (tmp_path / "new" / "report.md").read_text()
    assert "![From the multi-task policy against from scratch](figure-08.png)" in text
    assert "one standard deviation over tasks" in text
    assert max(map(len, table(summary).splitlines())) < 100
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["headline_warmstart"] == headline(summary)


def test_missing_arms_become_sentences(tmp_path):
    (tmp_path / "figure-12.png").write_bytes(b"from an earlier call")
    files = write_warmstart(made(("sac", "warm_full")), tmp_path)
    assert [file.name for file in files if file.suffix == ".png"] == ["figure-08.png"]
    assert not (tmp_path / "figure-12.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert "Figure 12 needs an arm that was not run: SAC from the policy without ensembles." in text
    assert "Figure 13 needs an arm that was not run: SAC from scratch, two mini-batches." in text
    assert "No headline, for want of an arm: SAC from scratch." in table(made(("warm_full", "sac_two_batches")))
    with pytest.raises(MissingData):
        write_warmstart({"environment": "ant_dir"}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_axis_after_warmup_hides_what_lies_before_the_first_update():
    arm = numbers.arms(made(("warm_full",)))["warm_full"]._replace(
        step=np.array([100, 150, 200, 230, *range(300, 308)])
    )
    x, kept = figures.points(arm, "after_warmup")
    assert x.tolist() == [0, 30, *range(100, 108)]
    assert kept.tolist() == [0, *range(3, 12)]
    assert figures.points(arm, "all_steps")[0].tolist() == arm.step.tolist()


@pytest.mark.parametrize(("axis", "start"), [("all_steps", [0, 100]), ("after_warmup", [0, 0])])
def test_figure_8_draws_the_means_on_the_axis(axis, start):
    summary = made()
    axes = figures.draw(summary, 8, axis, "equal").axes[0]
    assert axes.get_title(loc="left") == "AntDir: From the multi-task policy against from scratch"
    for line, name, first in zip(axes.lines[:2], ("sac", "warm_full"), start, strict=True):
        assert np.asarray(line.get_xdata())[0] == first
        np.testing.assert_allclose(np.asarray(line.get_ydata()), numbers.arms(summary)[name].returns.mean((0, 1)))
    speed = headline(summary)["speeds"][0]
    if axis == "all_steps":
        rings = [float(np.asarray(line.get_xdata())[0]) for line in axes.lines if line.get_markersize() == 9]
        assert rings == pytest.approx([speed["cold_steps"], speed["warm_steps"]])


def test_papers_comparison_draws_the_training_tasks(tmp_path):
    summary = made()
    line = figures.draw(summary, 8, "all_steps", "paper").axes[0].lines[0]
    assert np.asarray(line.get_ydata()).tolist() == [0, 305.5, 700]
    write_warmstart(summary, tmp_path, axis="after_warmup", comparison="paper")
    assert "the comparison is unequal" in (tmp_path / "report.md").read_text()
    write_warmstart(summary | {"training_curves": []}, tmp_path, comparison="paper")
    assert "No learning curves of SAC on the training tasks" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "figure-08.png").exists()


def test_unknown_options_name_the_choices(tmp_path):
    with pytest.raises(ValueError, match="axis is one of all_steps, after_warmup; got 'epochs'"):
        write_warmstart(made(), tmp_path / "out", axis="epochs")
    with pytest.raises(ValueError, match="comparison is one of equal, paper"):
        write_warmstart(made(), tmp_path / "out", comparison="fair")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["return", "step", "task"])
def test_runs_that_do_not_agree_are_refused(key, tmp_path):
    summary = made()
    curve = summary["warmstart"][0]["curves"][0]
    curve[key] = {"return": [None, *curve["return"][1:]], "step": curve["step"][1:], "task": 99}[key]
    with pytest.raises(SummaryError):
        write_warmstart(summary, tmp_path / "out")
    assert not (tmp_path / "out").exists()
