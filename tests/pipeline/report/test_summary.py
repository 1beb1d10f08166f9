import json
import pathlib

import numpy as np
import pytest

from pipeline.report.summary import SummaryError, check, curves, methods, plain


def test_plain_turns_arrays_paths_and_nan_into_json():
    made = plain({"a": np.array([1.0, np.nan]), 3: (np.int64(2), np.float32(0.5)), "p": pathlib.PurePosixPath("x/y")})
    assert made == {"a": [1.0, None], "3": [2, 0.5], "p": "x/y"}
    json.dumps(made, allow_nan=False)


def test_plain_refuses_what_json_cannot_hold():
    with pytest.raises(SummaryError, match="got a set"):
        plain({"a": {1, 2}})


def test_a_good_summary_passes(make_summary):
    check(plain(make_summary(seeds=2)))


def test_environment_is_needed():
    with pytest.raises(SummaryError, match="environment"):
        check({"preset": "laptop"})


def test_scores_of_the_wrong_number_of_tasks_are_refused(make_summary):
    summary = make_summary()
    summary["evaluation"][0]["test"] = [row[:-1] for row in summary["evaluation"][0]["test"]]
    with pytest.raises(SummaryError, match=r"full, seed 0, on unseen tasks.*\(6, 3\).*\(6, 4\)"):
        check(summary)


def test_references_of_the_wrong_number_of_tasks_are_refused(make_summary):
    summary = make_summary()
    summary["references"]["train"]["random"].append(1.0)
    with pytest.raises(SummaryError, match="reference random on training tasks"):
        check(summary)


def test_ragged_scores_are_refused(make_summary):
    summary = make_summary()
    summary["evaluation"][0]["test"][0].pop()
    with pytest.raises(SummaryError, match="equal length"):
        check(summary)


def test_curves_keep_the_steps_that_all_seeds_share(make_summary):
    summary = make_summary(seeds=2)
    short = summary["evaluation"][1]
    for field in ("step", "test", "train"):
        short[field] = short[field][1:]
    steps, scores = curves(summary, "full", "test")
    assert steps.tolist() == [1000, 1500, 2000, 2500, 3000]
    assert scores.shape == (2, 5, 4)
    assert scores[0, 0].tolist() == summary["evaluation"][0]["test"][1]
    assert scores[1, 0].tolist() == short["test"][0]


def test_methods_follow_the_variants_and_only_those_that_left_something(make_summary):
    summary = make_summary(methods=("full", "neither"))
    summary["variants"] = [{"label": name} for name in ("neither", "metagenrl", "full")]
    assert methods(summary) == ["neither", "full"]
    assert methods(summary | {"variants": None}) == ["full", "neither"]
