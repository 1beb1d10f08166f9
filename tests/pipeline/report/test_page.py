import dataclasses
import json
import re

import pytest

from pipeline.publish import publish
from pipeline.report.drawing import FIGURES
from pipeline.report.page import SECTIONS, run_page
from pipeline.results import Results


@pytest.fixture(scope="module")
def published(synthetic, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("report"), []
    publish(synthetic.results(("full", "no_triplet")), out, said.append)
    return out, "\n".join(said)


def test_everything_is_left_beside_the_page(published):
    out, _ = published
    pictures = {f"{name}.png" for name, entry in FIGURES.items() if entry.section in SECTIONS}
    others = {"results.parquet", "run.json", "results.csv", "curves.jsonl", "report.html", "report.md", "tensorboard"}
    assert {path.name for path in out.iterdir()} == pictures | others


def test_the_page_holds_its_pictures_and_asks_for_nothing_else(published):
    page = (published[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == sum(entry.section in SECTIONS for entry in FIGURES.values())
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_page_markdown_and_terminal_say_the_same(published):
    out, said = published
    verdict = "beats random (by"
    for text in ((out / "report.html").read_text(), (out / "report.md").read_text(), said):
        assert verdict in " ".join(text.split())
        for words in (
            "task-blind teacher",
            "Five episodes a task",
            "own rollouts identified",
            "laptop",
            "5m30s",
            "410 MB",
        ):
            assert words in " ".join(text.split())
    assert "![Task by task](per_task.png)" in (out / "report.md").read_text()
    assert max(map(len, said.splitlines())) <= 101


def test_the_markdown_begins_with_the_verdict(published):
    lines = [line for line in (published[0] / "report.md").read_text().splitlines() if line]
    assert lines[0] == "# UmazeGoal-M"
    assert any(line.startswith("**On unseen tasks full") for line in lines[1:3])


def test_curves_and_events_hold_scores_losses_and_returns(published):
    out, _ = published
    lines = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    tags = {line["tag"] for line in lines}
    assert {"full/seed-0/score/test", "full/seed-1/training/loss_q", "sac/return/train/task-002"} <= tags
    results = Results.load(out)
    expected = results.scores("full", "test")[1][0].mean(axis=1)
    assert [line["value"] for line in lines if line["tag"] == "full/seed-0/score/test"] == pytest.approx(expected)
    (events,) = (out / "tensorboard").iterdir()
    assert b"full/seed-0/score/test" in events.read_bytes()


def test_missing_numbers_are_left_out_with_a_sentence(synthetic, tmp_path):
    results = synthetic.results()
    bare = dataclasses.replace(results, table=results.rows("score", split="test"), run=results.run | {"cost": []})
    page = run_page(bare, tmp_path).render("html")
    assert "Left out: " in page
    assert "beats no reference with certainty" in page


def test_names_are_escaped_and_the_configuration_is_listed_by_dotted_names(synthetic, tmp_path):
    results = synthetic.results(("full", "<b>full</b>"))
    config = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}}
    page = run_page(dataclasses.replace(results, run=results.run | {"config": config}), tmp_path).render("html")
    assert "<b>full</b>" not in page
    assert "&lt;b&gt;full" in page
    found = re.findall(r"<code>(.*?)</code></td><td class=\"text\"><code>(.*?)</code>", page)
    assert found == [("a.b", "1"), ("a.c.d", "[2]"), ("e", "{}")]
