import json
import math

import numpy as np
import pytest

from pipeline.report import comparison, statistics
from pipeline.report.summary import plain

METHODS = ("full", "neither", "batch_pearl")


@pytest.fixture(scope="module")
def three(make_summary):
    """Three methods with three seeds each."""
    return plain(make_summary(seeds=3, methods=METHODS))


def scores(summary: dict, method: str, split: str) -> np.ndarray:
    """Scores `[seeds, steps, tasks]` of a method."""
    return np.array([run[split] for run in summary["evaluation"] if run["method"] == method])


@pytest.mark.parametrize("split", ["test", "train"])
def test_rows_hold_the_statistics_of_all_seeds_and_tasks(three, split):
    rows = comparison.rows(three, split)
    assert [(row.method, row.epoch) for row in rows] == [(m, epoch) for m in METHODS for epoch in ("last", "best")]
    for row in rows:
        table, first = scores(three, row.method, split), scores(three, "full", split)
        step = statistics.best_epoch(table) if row.epoch == "best" else -1
        first_step = statistics.best_epoch(first) if row.epoch == "best" else -1
        assert row.seeds == 3
        assert row.step == three["evaluation"][0]["step"][step]
        assert row.mean == pytest.approx(table[:, step].mean())
        assert row.spread == statistics.spread(table[:, step])
        assert row.iqm == statistics.pooled_iqm(table[:, step])
        expected = statistics.improvement(first[:, first_step], table[:, step])
        assert row.improvement == (None if row.method == "full" else expected)


def test_cells_stand_under_their_columns(three):
    columns = comparison.columns(three, "test")
    row = comparison.rows(three, "test")[3]
    cells = dict(zip(columns, row.cells(1), strict=True))
    assert cells["method, epoch"] == "neither, best*"
    assert cells["std tasks"] == f"{row.spread.tasks:.1f}"
    assert cells["std seeds"] == f"{row.spread.seeds:.1f}"
    assert cells["IQM (95 %)"] == f"{row.iqm.value:.1f} ({row.iqm.low:.1f} to {row.iqm.high:.1f})"
    assert row.improvement is not None
    assert cells["P(full better)"].startswith(f"{row.improvement.value:.2f} (")
    assert cells["resampled"] == "seeds"
    assert comparison.rows(three, "test")[0].cells(1)[-2] == "–"


def test_rows_of_single_seeds_say_that_tasks_were_resampled(make_summary):
    first, _, second, _ = comparison.rows(make_summary(methods=("full", "neither")), "test")
    assert (first.iqm.over, second.iqm.over) == ("tasks", "tasks")
    assert second.improvement is not None
    assert second.improvement.over == "tasks"
    assert first.cells(1)[5] == "–"


def test_a_missing_score_leaves_the_mean_and_no_interval(make_summary):
    summary = plain(make_summary(seeds=2, methods=("full", "neither")))
    summary["evaluation"][0]["test"][-1][0] = None
    first, *_, second = [row for row in comparison.rows(summary, "test") if row.epoch == "last"]
    assert math.isfinite(first.mean)
    assert first.cells(1)[4:] == ["–"] * 5
    assert second.cells(1)[-2] == "–"
    assert second.cells(1)[-1] == "seeds"


def test_seeds_that_stopped_early_are_compared_at_their_last_common_step(three):
    changed = three | {"evaluation": [dict(run) for run in three["evaluation"]]}
    for field in ("step", "test", "train"):
        changed["evaluation"][0][field] = changed["evaluation"][0][field][:2]
    assert comparison.rows(changed, "test")[0].step == 1000


def test_nothing_is_compared_for_one_method_with_one_seed(make_summary):
    assert comparison.titled(make_summary()) == []
    assert comparison.notes(make_summary()) == []
    assert comparison.titled({"environment": "ant_dir"}) == []


def test_columns_without_a_number_are_left_out(make_summary):
    (_, seeds_only, _), *_ = comparison.titled(make_summary(seeds=2))
    (_, methods_only, rows), *_ = comparison.titled(make_summary(methods=("full", "neither")))
    assert [column in seeds_only for column in ("std seeds", "P(full better)")] == [True, False]
    assert [column in methods_only for column in ("std seeds", "P(full better)")] == [False, True]
    assert {len(row) for row in rows} == {len(methods_only)}


def test_notes_explain_improvement_only_where_there_are_methods(make_summary):
    assert any("P(full better)" in note for note in comparison.notes(make_summary(methods=("full", "neither"))))
    notes = comparison.notes(make_summary(seeds=2))
    assert any("optimistic" in note for note in notes)
    assert not any("P(" in note for note in notes)


def test_diagnostics_are_means_with_extremes_over_seeds(three):
    columns, rows = comparison.diagnostics(three)
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert table["full"]["swap: rewards' task"] == "38% (33% to 43%)"
    assert table["full"]["own context identified"] == "95% (95% to 95%)"
    probes = [row for row in three["probes"] if row["method"] == "neither"]
    last = [row["identification"][-1] for row in probes]
    assert table["neither"]["own rollouts identified"] == f"{np.mean(last):.0%} ({min(last):.0%} to {max(last):.0%})"
    near = [np.mean(row["foreign_contexts"]["farthest"]) for row in probes]
    written = f"{np.mean(near):.1f} ({min(near):.1f} to {max(near):.1f})"
    assert table["neither"]["return, farthest context"] == written
    assert table["neither"]["last trajectory"] == "–"
    assert table["batch PEARL"]["last trajectory"] != "–"
    assert table["batch PEARL"]["eligible share"] == "–"


def test_error_of_eligible_labels_is_taken_over_rows_not_pairs(make_summary):
    """Pair (0, 1) has three times the eligible rows of pair (1, 0): 30 rows of error 1 and 10 of error 3."""
    summary = make_summary(train=2)
    summary["relabelling"] = [
        {"method": "full", "share": [[None, 0.3], [0.1, None]], "error_eligible": [[None, 1.0], [3.0, None]]}
    ]
    rows = np.array([1.0] * 30 + [3.0] * 10)
    values = comparison.diagnostic_values(summary)
    assert values["RMSE of eligible labels"]["full"] == pytest.approx([np.sqrt(np.mean(rows**2))])
    assert values["eligible share"]["full"] == pytest.approx([0.2])


def test_diagnostics_without_any_number_have_no_column(three):
    probes = [row | {"foreign_contexts": None, "last_trajectory": None} for row in three["probes"]]
    columns, _ = comparison.diagnostics(three | {"probes": probes, "relabelling": [], "reward_swap": None})
    assert columns == ["method", "own rollouts identified"]
    assert comparison.diagnostics({"environment": "ant_dir"}) == ([], [])


def test_table_rows_are_flat_with_a_column_per_changed_field(make_summary):
    summary = plain(make_summary(seeds=2, methods=("full", "margin=4")))
    rows = comparison.table_rows(summary)
    assert len(rows) == 2 * 2 * 6
    assert len({tuple(row) for row in rows}) == 1
    run = summary["evaluation"][3]
    assert rows[-1] == {
        "environment": "umaze_goal",
        "preset": "laptop",
        "data_seed": 0,
        "variant": "margin=4",
        "method": "full",
        "distill.margin": 4.0,
        "seed": 1,
        "step": 3000,
        "test_mean": pytest.approx(np.mean(run["test"][-1])),
        "test_iqm": pytest.approx(statistics.iqm(run["test"][-1])),
        "train_mean": pytest.approx(np.mean(run["train"][-1])),
        "train_iqm": pytest.approx(statistics.iqm(run["train"][-1])),
    }
    assert rows[0]["variant"] == "full"
    assert rows[0]["distill.margin"] is None
    json.dumps(rows, allow_nan=False)


def test_table_rows_leave_out_what_was_not_scored(make_summary):
    summary = plain(make_summary())
    del summary["evaluation"][0]["train"], summary["variants"]
    summary["evaluation"][0]["test"][0][0] = None
    first, second = comparison.table_rows(summary)[:2]
    assert (first["test_mean"], first["test_iqm"], first["train_mean"]) == (None, None, None)
    assert second["test_mean"] == pytest.approx(np.mean(summary["evaluation"][0]["test"][1]))
    assert (first["variant"], first["method"]) == ("full", "full")


def test_task_rows_hold_every_score_once(make_summary):
    summary = plain(make_summary(seeds=2, methods=("full", "margin=4")))
    for position, task in enumerate(summary["tasks"]["test"]):
        task["index"] = 10 + position
    rows = comparison.task_rows(summary)
    assert len(rows) == 2 * 2 * 6 * (3 + 4)
    chosen = [r for r in rows if (r["variant"], r["seed"], r["step"], r["split"]) == ("margin=4", 1, 1000, "test")]
    assert [row["task"] for row in chosen] == [10, 11, 12, 13]
    assert [row["score"] for row in chosen] == summary["evaluation"][3]["test"][1]
    assert list(chosen[0])[:6] == ["environment", "preset", "data_seed", "variant", "method", "distill.margin"]
