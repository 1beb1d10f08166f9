import warnings

import numpy as np
import pytest

from pipeline.report import statistics


def test_iqm_drops_a_quarter_at_either_end():
    assert statistics.iqm([100, 1, 2, 3, 4, 5, 6, -100]) == pytest.approx(np.mean([2, 3, 4, 5]))


def test_iqm_of_fewer_than_four_scores_is_their_mean():
    assert statistics.iqm([1, 2, 9]) == pytest.approx(4)


def test_interval_holds_the_iqm_and_is_the_same_every_time():
    scores = np.random.default_rng(3).normal(100, 20, 10)
    low, high = statistics.interval(scores)
    assert low < statistics.iqm(scores) < high
    assert statistics.interval(scores) == (low, high)


def test_interval_matches_a_plain_bootstrap():
    scores = np.random.default_rng(3).normal(100, 20, 10)
    make = np.random.default_rng(1)
    drawn = np.sort(scores[make.integers(0, 10, (20_000, 10))], axis=1)[:, 2:8].mean(axis=1)
    assert statistics.interval(scores) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1.0)


def test_lower_confidence_is_narrower():
    scores = np.arange(12.0)
    wide, narrow = statistics.interval(scores), statistics.interval(scores, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("scores", [[-7.5], [3.0, 3.0, 3.0, 3.0, 3.0]])
def test_one_score_or_equal_scores_give_no_width_and_no_warning(scores):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics.summarise(scores)
    assert found == {
        "mean": scores[0],
        "iqm": scores[0],
        "low": scores[0],
        "high": scores[0],
        "std_over_tasks": 0,
    }


def test_std_has_divisor_n():
    assert statistics.summarise([0.0, 2.0])["std_over_tasks"] == pytest.approx(1.0)


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_scores_that_cannot_be_summarised_are_refused(scores):
    with pytest.raises(statistics.StatisticsError, match="one per task"):
        statistics.iqm(scores)


@pytest.fixture(scope="module")
def runs():
    """Scores `[seeds, tasks]` whose seeds differ in all tasks at once: joint resampling would be far wider."""
    make = np.random.default_rng(5)
    return make.normal(100, 30, 6) + make.normal(0, 12, (4, 1)) + make.normal(0, 4, (4, 6))


def resampled(scores: np.ndarray, make: np.random.Generator) -> list[list[float]]:
    """Each task's scores `[tasks][seeds]`, drawn again with replacement within the task."""
    seeds, tasks = scores.shape
    return [[scores[make.integers(seeds), task] for _ in range(seeds)] for task in range(tasks)]


def middle_half(values: list[float]) -> float:
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def wins(first: list[float], second: list[float]) -> float:
    """Share of pairs that the first wins, ties counting half."""
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    return sum(points) / len(points)


def test_pooled_iqm_and_its_interval_equal_loops_over_tasks_and_seeds(runs):
    make = np.random.default_rng(1)
    drawn = [middle_half([v for task in resampled(runs, make) for v in task]) for _ in range(2000)]
    found = statistics.pooled_iqm(runs)
    assert found.value == pytest.approx(middle_half(runs.ravel().tolist()))
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.08 * np.ptp(drawn))
    assert found.over == "seeds"


def test_pooled_interval_does_not_resample_the_tasks():
    spread_out = np.array([[0.0, 100, 200, 300, 400, 500, 600, 700]] * 3)
    found = statistics.pooled_iqm(spread_out)
    assert found.low == found.value == found.high == 350


def test_pooled_iqm_of_one_seed_resamples_the_tasks(runs):
    found = statistics.pooled_iqm(runs[:1])
    assert found == (statistics.iqm(runs[0]), *statistics.interval(runs[0]), "tasks")


def test_improvement_equals_loops_over_pairs(runs):
    other = np.round(runs[:3] + 6)
    first = np.round(runs)
    make, drawn = np.random.default_rng(2), []
    for _ in range(2000):
        pairs = zip(resampled(first, make), resampled(other, make), strict=True)
        drawn.append(np.mean([wins(a, b) for a, b in pairs]))
    found = statistics.improvement(first, other)
    expected = np.mean([wins(first[:, task].tolist(), other[:, task].tolist()) for task in range(6)])
    assert found.value == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.08 * np.ptp(drawn))
    assert found.over == "seeds"


def test_improvement_is_mann_whitney_and_ties_count_half():
    first, second = np.array([[1.0, 5], [2, 5]]), np.array([[1.0, 5], [0, 5], [3, 5]])
    assert statistics.improvement(first, second).value == pytest.approx((3.5 / 6 + 0.5) / 2)
    both = statistics.improvement(first, second).value + statistics.improvement(second, first).value
    assert both == pytest.approx(1)


def test_improvement_of_one_seed_resamples_the_tasks(runs):
    single = runs[:1] + np.where(np.arange(6) < 2, 50.0, -50.0)
    make = np.random.default_rng(3)
    won = [wins(single[:, task].tolist(), runs[:, task].tolist()) for task in range(6)]
    drawn = [np.mean([won[make.integers(6)] for _ in range(6)]) for _ in range(2000)]
    found = statistics.improvement(single, runs)
    assert found.value == pytest.approx(2 / 6)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.17)
    assert found.over == "tasks"


def test_improvement_needs_the_same_tasks(runs):
    with pytest.raises(statistics.StatisticsError, match="same tasks"):
        statistics.improvement(runs, runs[:, :3])


def test_intervals_are_the_same_every_time(runs):
    assert statistics.pooled_iqm(runs) == statistics.pooled_iqm(runs)
    assert statistics.improvement(runs, runs + 3) == statistics.improvement(runs, runs + 3)


def test_spread_keeps_tasks_and_seeds_apart():
    scores = np.array([[0.0, 10, 20], [2, 12, 22]])  # tasks 10 apart, seeds 2 apart
    assert statistics.spread(scores) == pytest.approx((np.sqrt(200 / 3), np.sqrt(2)))
    assert np.isnan(statistics.spread(scores[:1]).seeds)


def test_best_epoch_is_the_highest_mean_over_seeds_and_tasks():
    scores = np.zeros((2, 4, 3))
    scores[0, 1, 0] = 9  # the highest single score and the highest single seed
    scores[:, 2] = 2
    scores[:, 3] = 2
    means = [sum(scores[s, step, t] for s in range(2) for t in range(3)) / 6 for step in range(4)]
    assert statistics.best_epoch(scores) == means.index(max(means)) == 2


def test_seed_interval_is_the_bootstrap_of_the_mean_from_three_seeds_on(runs):
    make = np.random.default_rng(4)
    low, high = statistics.seed_interval(runs)
    drawn = [[np.mean([runs[make.integers(4), point] for _ in range(4)]) for point in range(6)] for _ in range(2000)]
    expected = np.percentile(drawn, [2.5, 97.5], axis=0)
    assert np.abs(np.array([low, high]) - expected).max() < 0.1 * np.ptp(drawn, axis=0).max()
    low, high = statistics.seed_interval(runs[:2])
    assert (low <= runs[:2]).all()
    assert np.array_equal(high, runs[:2].max(axis=0))


@pytest.mark.parametrize("scores", [[1.0, 2.0], [[1.0, float("nan")]], [[]]])
def test_tables_that_cannot_be_summarised_are_refused(scores):
    for summary in (statistics.pooled_iqm, statistics.spread):
        with pytest.raises(statistics.StatisticsError, match="one per seed and task"):
            summary(scores)
