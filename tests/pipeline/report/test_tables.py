import numpy as np
import pytest

from pipeline.report import statistics, tables
from pipeline.report.wording import duration


def test_headline_copies_the_recorded_numbers_of_a_single_seed(make_summary):
    summary = make_summary()
    line = tables.headline(summary, "test")[0]
    row = next(r for r in summary["headline"] if r["split"] == "test" and r["epoch"] == "last")
    assert (line.mean, line.iqm, line.low, line.high) == (row["mean"], row["iqm"], row["low"], row["high"])
    assert line.step == 3000


def test_headline_lists_last_best_and_every_reference(make_summary):
    titles = [line.title for line in tables.headline(make_summary(), "train")]
    assert titles[:2] == ["full, last", "full, best*"]
    assert titles[2:] == [
        "random",
        "zero action",
        "best task-blind teacher",
        "nearest task's teacher",
        "own SAC",
        "own BCQ",
    ]


def test_several_seeds_are_averaged_task_by_task(make_summary):
    summary = make_summary(seeds=3)
    line = tables.headline(summary, "test")[0]
    expected = statistics.summarise(np.mean([run["test"][-1] for run in summary["evaluation"]], axis=0))
    assert line.name == "full (3 seeds)"
    assert (line.mean, line.std) == pytest.approx((expected["mean"], expected["std_over_tasks"]))
    assert (line.low, line.high) == pytest.approx((expected["low"], expected["high"]))


def test_several_seeds_without_single_scores_still_give_a_mean(make_summary):
    summary = make_summary(seeds=2)
    summary["evaluation"] = []
    line = tables.headline(summary, "test")[0]
    means = [r["mean"] for r in summary["headline"] if r["split"] == "test" and r["epoch"] == "last"]
    assert line.mean == pytest.approx(np.mean(means))
    assert line.cells(1)[2] == "–"


def test_seed_rows_only_where_a_method_has_several(make_summary):
    assert tables.seeds(make_summary(), "test") == []
    rows = tables.seeds(make_summary(seeds=2), "test")
    assert [row[:3] for row in rows] == [
        ["full", "0", "last"],
        ["full", "0", "best*"],
        ["full", "1", "last"],
        ["full", "1", "best*"],
    ]


def test_per_task_rows_hold_scores_references_and_their_means(make_summary):
    summary = make_summary()
    columns, rows = tables.per_task(summary, "test")
    assert columns == ["task", "label", "full", "random", "zero", "blind", "nearest"]
    assert rows[1][1] == summary["tasks"]["test"][1]["label"]
    assert rows[1][2] == f"{summary['evaluation'][0]['test'][-1][1]:.1f}"
    assert rows[-1][3] == f"{np.mean(summary['references']['test']['random']):.1f}"


def test_verdict_sorts_references_by_whether_the_policy_beats_them(make_summary):
    summary = make_summary()
    for row in summary["headline"]:
        row["mean"] = -5.0
    summary["references"]["test"] = {
        "random": [-9.0] * 4,
        "zero_action": [-5.0] * 4,
        "nearest_teacher": [2.0] * 4,
    }
    summary["references"]["train"] = {"random": [60.0] * 3}
    assert tables.verdict(summary) == (
        "On unseen tasks, full reaches a mean return of -5.0; above random (-9.0); "
        "not above zero action (-5.0), nearest task's teacher (2.0)."
    )


def test_small_returns_get_more_decimals(make_summary):
    summary = make_summary()
    assert tables.decimals(summary) == 1
    summary["headline"] = []
    summary["references"] = {"test": {"random": [0.01, 0.02, 0.03, 0.04]}}
    assert tables.decimals(summary) == 3


def test_settings_are_flattened():
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert tables.settings(nested) == [("a.b.c", "1"), ("a.d", "[1, 2]"), ("e", "None"), ("f", "{}")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.46, "8.5 s"), (845, "14 min 5 s"), (7400, "2 h 3 min"), (None, "–"), (float("nan"), "–")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_facts_name_the_sweep_where_there_is_one(make_summary):
    made = make_summary()
    assert "sweep" not in dict(tables.facts(made))
    made["sweep"] = {"name": "beta", "description": "five weights of the prior"}
    assert tables.facts(made)[0] == ("sweep", "beta (five weights of the prior)")
