import numpy as np
import pytest
from scipy import stats

from pipeline.report import statistics


@pytest.fixture(scope="module")
def runs():
    """Scores `[seeds, tasks]` whose seeds differ in all tasks at once: drawing seeds task by task would hide that."""
    make = np.random.default_rng(5)
    return make.normal(100, 3, 6) + make.normal(0, 12, (4, 1)) + make.normal(0, 1, (4, 6))


def middle_half(values: list[float]) -> float:
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def resample(scores, make, tasks):
    return scores[make.integers(0, len(scores), len(scores))][:, tasks]


def test_iqm_drops_a_quarter_at_either_end():
    assert statistics.iqm(np.array([100, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(np.mean([2, 3, 4, 5]))
    assert statistics.iqm(np.array([1.0, 2, 9])) == pytest.approx(4)


def test_pooled_iqm_equals_loops_over_whole_seeds_and_tasks(runs):
    make, drawn = np.random.default_rng(1), []
    for _ in range(3000):
        drawn.append(middle_half(resample(runs, make, make.integers(0, 6, 6)).ravel().tolist()))
    found = statistics.pooled_iqm(runs)
    assert found.value == pytest.approx(middle_half(runs.ravel().tolist()))
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.08 * np.ptp(drawn))


def test_seeds_that_move_all_tasks_together_widen_the_interval(runs):
    together = statistics.pooled_iqm(runs)
    within = runs.copy()  # the same numbers, with the seeds shuffled task by task
    for task in range(6):
        within[:, task] = np.roll(within[:, task], task)
    shuffled = statistics.pooled_iqm(within)
    assert together.high - together.low > 1.5 * (shuffled.high - shuffled.low)


def test_differences_are_paired_over_the_tasks(runs):
    far_apart = np.array([0.0, 100, 200, 300, 400, 500])
    found = statistics.difference(runs + far_apart, runs.mean(axis=0, keepdims=True) + far_apart - 5)
    assert found.value == pytest.approx(5)
    assert found.high - found.low < 40  # though the tasks are 500 apart


def test_improvement_equals_loops_over_pairs(runs):
    first, other = np.round(runs), np.round(runs[:3] + 6)
    make, drawn = np.random.default_rng(2), []

    def wins(one, two):
        return np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in one for b in two])

    for _ in range(1000):
        tasks = make.integers(0, 6, 6)
        left, right = resample(first, make, tasks), resample(other, make, tasks)
        drawn.append(np.mean([wins(left[:, task], right[:, task]) for task in range(6)]))
    found = statistics.improvement(first, other)
    assert found.value == pytest.approx(np.mean([wins(first[:, task], other[:, task]) for task in range(6)]))
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.1)
    tests = [stats.mannwhitneyu(first[:, task], other[:, task]).statistic / 12 for task in range(6)]
    assert found.value == pytest.approx(np.mean(tests))


def test_one_number_has_an_interval_without_width_and_a_missing_one_has_none():
    one = np.array([[3.0]])
    assert statistics.pooled_iqm(one) == statistics.difference(one, np.zeros((1, 1))) == (3, 3, 3)
    assert np.isnan(statistics.pooled_iqm(np.array([[np.nan, 1.0]]))).all()


def test_intervals_are_the_same_every_time(runs):
    assert statistics.pooled_iqm(runs) == statistics.pooled_iqm(runs)
    assert statistics.difference(runs, runs[:2]) == statistics.difference(runs, runs[:2])


def test_best_epoch_is_the_highest_mean_over_seeds_and_tasks():
    scores = np.zeros((2, 3, 2))
    scores[:, 1], scores[0, 2] = 4.0, [7.0, 0.0]
    assert statistics.best_epoch(scores) == 1


def test_bands_over_seeds_are_extremes_of_two_and_intervals_of_three(runs):
    low, high = statistics.seed_interval(runs[:2])
    np.testing.assert_array_equal((low, high), (runs[:2].min(axis=0), runs[:2].max(axis=0)))
    low, high = statistics.seed_interval(runs)
    assert (low > runs.min(axis=0)).all()
    assert (low < runs.mean(axis=0)).all()
    assert (high > runs.mean(axis=0)).all()


def test_mean_interval_holds_the_mean_at_every_point(runs):
    low, high = statistics.mean_interval(runs[:, None] + np.arange(3)[:, None])
    mean = runs.mean() + np.arange(3)
    assert ((low < mean) & (mean < high)).all()


def test_an_interval_of_blocks_within_tasks_is_that_of_drawing_both():
    make = np.random.default_rng(1)
    tasks = [make.normal(level, 2.0, count) for level, count in ((0, 3), (5, 8), (1, 1), (9, 20))]
    found = statistics.nested(tasks)
    assert found.value == pytest.approx(np.mean([blocks.mean() for blocks in tasks]))
    drawn = []
    for _ in range(4_000):
        means = [make.choice(blocks, len(blocks)).mean() for blocks in tasks]
        drawn.append(np.mean(make.choice(means, len(means))))
    for end, wanted in zip(found[1:], np.percentile(drawn, statistics.PERCENTILES), strict=True):
        assert end == pytest.approx(wanted, abs=0.25)
    constant = statistics.nested([np.full(5, 2.0), np.full(2, 2.0)])
    assert constant == pytest.approx((2.0, 2.0, 2.0))
