"""The report of a thousand training tasks, of which some were played, and of more unseen tasks than fit a page."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from pipeline.publish import publish
from pipeline.report import tables
from pipeline.report.drawing import draw
from pipeline.report.wording import MANY
from pipeline.results import Results, table_of, tidy

TRAIN, PLAYED, TEST = 1_000, 50, 60


def ends_of(line: Line2D) -> np.ndarray:
    """What a line has on the y axis."""
    return np.asarray(line.get_ydata(), dtype=float)


def partly(synthetic, train: int, played: int, test: int) -> Results:
    """The made-up results of `played` training tasks, evenly out of `train`, each of which has a curve."""
    results, make = synthetic.results(("full",), seeds=1, train=played, test=test), np.random.default_rng(1)
    table, every = results.table.copy(), train // played
    ours = table["split"] == "train"
    table.loc[ours, "task"] *= every
    table.loc[table["metric"].isin(["teacher_return"]), "index"] *= every
    relabelled = table["metric"].str.startswith("relabel_") & table["index"].notna()
    table.loc[relabelled, "index"] *= every
    table = table[~table["metric"].isin(["return"])]
    steps, where = list(range(100, 1_100, 100)), {"split": "train", "task": list(range(train))}
    curves = make.normal(200, 20, (train, 1)) * np.linspace(0, 1, 10)
    parts = [tidy("return", "task step", curves, step=steps, method=name, **where) for name in ("sac", "teacher")]
    tasks = [{"index": i, "label": f"goal {i}", "features": make.normal(size=2).tolist()} for i in range(train)]
    those = [task["index"] for task in tasks[::every]]
    run = results.run | {"tasks": results.run["tasks"] | {"train": tasks}, "played": {"train": those}}
    return dataclasses.replace(results, table=table_of([table, *parts]), run=run)


@pytest.fixture(scope="module")
def crowd(synthetic):
    return partly(synthetic, TRAIN, PLAYED, TEST)


def test_scores_and_references_are_of_the_tasks_that_were_played(crowd):
    assert crowd.played("train") == list(range(0, TRAIN, 20))
    assert crowd.labels("train")[:2] == ["goal 0", "goal 20"]
    assert {len(values) for values in crowd.references("train").values()} == {PLAYED}
    assert all(np.isfinite(values).all() for values in crowd.references("train").values())
    facts = tables.facts(crowd)
    assert (facts["training tasks"], facts["of those, played"]) == (str(TRAIN), str(PLAYED))
    assert "chance, 1/50" in draw("identification", crowd).axes[0].get_legend_handles_labels()[1]


def test_the_worst_tasks_have_a_row_and_the_others_are_counted(crowd):
    frame = tables.last_scores(crowd, "test")
    scores = crowd.scores("full", "test")[1][0, -1]
    assert len(frame) == tables.WORST + 5 + 1
    labels = [f"{task}: {crowd.labels('test')[task]}" for task in np.argsort(scores)[: tables.WORST]]
    assert list(frame.index[: tables.WORST]) == labels
    assert frame.loc["half", "full"] == f"{np.median(scores):.1f}"
    assert frame.loc["mean", "full"] == f"{scores.mean():.1f}"
    few = dataclasses.replace(
        crowd,
        table=crowd.table[(crowd.table["split"] != "test") | (crowd.table["task"] < MANY)],
        run=crowd.run | {"tasks": crowd.run["tasks"] | {"test": crowd.run["tasks"]["test"][:MANY]}},
    )
    assert len(tables.last_scores(few, "test")) == MANY + 1


def test_pictures_show_distributions(crowd):
    (axes, _) = draw("per_task", crowd).axes
    values = ends_of(axes.lines[0])
    assert len(values) == TEST
    np.testing.assert_allclose(values, np.sort(crowd.scores("full", "test")[1][0, -1]))
    (curves,) = draw("teacher_curves", crowd).axes
    rows = crowd.rows("return", method="teacher")
    ends = rows[rows["step"] == 1_000]["value"]
    middle = next(line for line in curves.lines if line.get_label() == "median task")
    assert ends_of(middle)[-1] == pytest.approx(ends.median())
    lowest = sorted(float(ends_of(line)[-1]) for line in curves.lines if line is not middle)
    np.testing.assert_allclose(lowest, np.sort(ends)[: tables.WORST])
    relabelling = draw("relabelling", crowd)
    assert not any(axes.images for axes in relabelling.axes)
    assert len(relabelling.axes) == 3


def test_the_report_of_a_few_that_were_played_out_of_a_few(synthetic, tmp_path):
    few, said = partly(synthetic, train=6, played=3, test=2), []
    publish(few, tmp_path, said.append)
    assert (tmp_path / "report.html").exists()
    (_, axes) = draw("per_task", few).axes
    np.testing.assert_allclose(ends_of(axes.lines[0]), few.scores("full", "train")[1][0, -1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["goal 0", "goal 2", "goal 4"]


def test_the_page_stays_small(crowd, tmp_path):
    publish(crowd, tmp_path, lambda said: None)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<tr") < 300
    assert len(page) < 4e6
    lines = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert len(lines) < 1_000
    found = pd.DataFrame(lines).set_index(["tag", "step"])["value"]
    rows = crowd.rows("return", method="sac", step=500)["value"]
    assert found["sac/return/train", 500] == pytest.approx(rows.mean())
