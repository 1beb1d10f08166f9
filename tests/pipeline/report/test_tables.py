import dataclasses

import numpy as np
import pytest

from pipeline.report import statistics, tables
from pipeline.results import tidy


@pytest.fixture(scope="module")
def two(synthetic):
    return synthetic.results(("full", "no_triplet"))


def with_reference(results, name: str, level: float):
    """The results, with every unseen task's level of one reference at `level`."""
    table = results.table.copy()
    table.loc[(table["metric"] == "reference") & (table["method"] == name) & (table["split"] == "test"), "value"] = (
        level
    )
    return dataclasses.replace(results, table=table)


def test_the_headline_has_every_method_at_both_epochs_and_every_reference(two, synthetic):
    frame = tables.headline(two, "test")
    assert list(frame.index[:4]) == ["full, last", "full, best*", "no triplet, last", "no triplet, best*"]
    assert len(frame) == 4 + len(synthetic.REFERENCES)
    _, scores = two.scores("full", "test")
    assert frame.loc["full, last", "mean"] == f"{scores[:, -1].mean():.1f}"
    rival = two.scores("no_triplet", "test")[1][:, -1]
    found = statistics.difference(scores[:, -1], rival)
    assert str(frame.loc["no triplet, last", "full − it (95 %)"]).startswith(f"{found.value:.1f} ({found.low:.1f} to ")


def test_a_single_run_has_no_column_without_numbers(synthetic):
    frame = tables.headline(synthetic.results(seeds=1), "train")
    assert "std seeds" not in frame
    assert "own teacher" in frame.index


def test_per_task_rows_hold_scores_references_and_their_means(two):
    frame = tables.last_scores(two, "test")
    assert len(frame) == 5
    assert frame["full"].iloc[2] == f"{two.scores('full', 'test')[1][:, -1, 2].mean():.1f}"
    assert frame.loc["mean", "blind"] == f"{two.references('test')['blind_teacher'].mean():.1f}"


def test_the_verdict_begins_with_what_is_beaten(two):
    first, *others = tables.verdict(with_reference(two, "best_teacher", 300.0))
    assert first.startswith("On unseen tasks full (mean return")
    assert "2 seeds, 4 tasks) beats random (by" in first
    assert "task-blind teacher (by" in first
    assert "95 % interval" in first
    assert any(s.startswith("It loses to") and "best teacher per task (tried out) (by" in s for s in others)


def test_a_lost_simple_reference_is_the_first_sentence(two):
    first = tables.verdict(with_reference(two, "blind_teacher", 300.0))[0]
    assert "loses to task-blind teacher (by" in first
    assert first.endswith("the strongest reference that need not be told the task.")


def test_a_simple_reference_that_is_not_surely_beaten_is_the_first_sentence(two):
    level = two.scores("full", "test")[1][:, -1].mean()
    assert "does not surely beat random" in tables.verdict(with_reference(two, "random", level))[0]


def test_one_task_and_one_seed_beat_nothing_with_certainty(synthetic):
    sentences = " ".join(tables.verdict(synthetic.results(seeds=1, test=1)))
    assert "beats no reference with certainty" in sentences


def test_diagnostics_are_means_over_seeds_with_extremes(two):
    frame = tables.diagnostics(two)
    assert frame.loc["full", "swap: rewards' task"] == "36% (33% to 38%)"
    assert frame.loc["full", "own rollouts identified"] == "85% (80% to 90%)"  # after the last episode
    share = two.rows("relabel_share", method="full")["value"].to_numpy()
    assert float(str(frame.loc["full", "RMSE of eligible labels"])) == pytest.approx(
        np.sqrt((share**3).sum() / share.sum()), rel=1e-2
    )  # the made-up error of a pair is its share


def test_small_returns_get_more_decimals(synthetic):
    small = synthetic.results()
    small.table.loc[small.table["metric"].isin(["score", "reference"]), "value"] /= 100
    assert tables.decimals(small) == 3
    assert tables.decimals(synthetic.results()) == 1


def test_evaluations_are_one_row_per_variant_seed_and_step_in_their_order(synthetic):
    results = synthetic.results(("margin=4", "margin=2"))
    frame = tables.evaluations(results)
    assert list(frame["variant"].unique()) == ["margin=4", "margin=2"]
    assert list(frame["distill.margin"].unique()) == [4, 2]
    assert len(frame) == 2 * 2 * 6
    assert frame["test_mean"].iloc[5] == pytest.approx(results.scores("margin=4", "test")[1][0, -1].mean())
    assert set(frame["method"]) == {"full"}


def test_a_seed_that_stopped_early_shortens_the_shared_steps(two):
    table = two.table
    stopped = (table["metric"] == "score") & (table["seed"] == 1) & (table["step"] > 2000)
    steps, scores = dataclasses.replace(two, table=table[~stopped]).scores("full", "test")
    assert steps.tolist() == [500, 1000, 1500, 2000]
    assert scores.shape == (2, 4, 4)


def test_facts_name_the_sweep_where_there_is_one(two):
    run = two.run | {"sweep": {"name": "margins", "description": "several"}}
    assert tables.facts(dataclasses.replace(two, run=run))["sweep"] == "margins (several)"
    assert "sweep" not in tables.facts(two)
    unsaid = dataclasses.replace(two, run={**two.run, "parameter": ""})
    assert "task parameter" not in tables.facts(unsaid)


def test_last_trajectory_is_shown_where_it_was_measured(two, synthetic):
    rows = tidy("last_trajectory", "task", [1.0, 2, 3, 4], method="full", seed=0, split="test", task=[0, 1, 2, 3])
    table = synthetic.table_of([two.table, rows])
    assert tables.diagnostics(dataclasses.replace(two, table=table)).loc["full", "last trajectory"] == "2.5"


def test_a_reused_stage_shows_what_its_jobs_took_and_no_wall_time(two):
    assert tables.cost(two).to_dict("index") == {
        "collect": {"jobs": "2", "reused": "0", "wall time": "5m30s", "all jobs": "10m40s", "peak memory": "410 MB"},
        "teach": {"jobs": "2", "reused": "2", "wall time": "–", "all jobs": "10m40s", "peak memory": "410 MB"},
    }
