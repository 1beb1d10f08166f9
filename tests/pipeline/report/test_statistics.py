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
