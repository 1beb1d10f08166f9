import pytest

from pipeline.report import text
from pipeline.report.summary import SummaryError


def test_table_shows_the_headline_and_every_task_within_100_columns(make_summary):
    shown = text.table(make_summary(seeds=3, methods=("full", "no_triplet")))
    assert max(map(len, shown.splitlines())) <= text.WIDTH
    for needed in (
        "umaze_goal",
        "laptop",
        "best task-blind teacher",
        "no triplet (3 seeds), best*",
        "optimistic",
    ):
        assert needed in shown
    assert shown.count("mean") >= 4


def test_columns_that_do_not_fit_go_to_further_blocks(make_summary):
    summary = make_summary()
    wide = {f"an_unusually_long_reference_{n}": [float(n)] * 4 for n in range(8)}
    summary["references"]["test"] = wide
    for task in summary["tasks"]["test"]:
        task["label"] = f"a label that is much too long for a column {task['index']}"
    shown = text.table(summary)
    assert max(map(len, shown.splitlines())) <= text.WIDTH
    for name in wide:
        assert shown.count(name.replace("_", " ")) >= 2  # in the headline and among the columns


def test_columns_are_aligned(make_summary):
    lines = text.table(make_summary()).splitlines()
    start = lines.index("Return on each of the unseen tasks (last epoch)")
    assert len({len(line) for line in lines[start + 1 : start + 7]}) == 1


def test_best_note_only_with_a_best_epoch(make_summary):
    summary = make_summary()
    summary["headline"] = [row for row in summary["headline"] if row["epoch"] == "last"]
    assert "optimistic" not in text.table(summary)


def test_markdown_tables_are_whole(make_summary):
    summary = make_summary()
    summary["tasks"]["test"][0]["label"] = "a|b"
    shown = text.markdown(summary)
    assert shown.startswith("# UmazeGoal-M\n")
    assert "a\\|b" in shown
    blocks = [block.splitlines() for block in shown.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1


@pytest.mark.parametrize("write", [text.table, text.markdown])
def test_an_almost_empty_summary_is_no_error(write):
    assert "No score on unseen tasks was recorded." in write({"environment": "ant_dir"})


@pytest.mark.parametrize("write", [text.table, text.markdown])
def test_a_contradictory_summary_is_refused(write, make_summary):
    summary = make_summary()
    summary["tasks"]["test"].pop()
    with pytest.raises(SummaryError, match="unseen tasks"):
        write(summary)


@pytest.mark.parametrize("write", [text.table, text.markdown])
def test_several_methods_or_seeds_are_set_side_by_side(write, make_summary):
    assert "Comparison" not in write(make_summary())
    assert "P(full better)" in write(make_summary(methods=("full", "neither")))
    shown = write(make_summary(seeds=2))
    for needed in ("Comparison on unseen tasks", "Comparison on training tasks", "Diagnostics", "no interval covers"):
        assert needed in shown.replace("\n", " ")
