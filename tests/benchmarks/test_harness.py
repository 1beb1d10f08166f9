"""The harness of the benchmarks: statistics, table, processes, limits and the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import limit
from benchmarks.__main__ import chosen, main
from benchmarks.measure import Measured, Result, measure
from benchmarks.ours.driver import configuration
from benchmarks.ours.orchestration import OrchestrationError, of_folder, unused_share
from benchmarks.peers.protocol import milliseconds, rate
from benchmarks.profiled import KINDS, parts, profile
from benchmarks.registry import ROWS, Competitor, Row
from benchmarks.table import TableError, advantage, markdown, number, publish, summarise
from pipeline.plan import plan

ROOT = Path(__file__).resolve().parents[2]
SPEED = Row("speed", "Speed", "steps/s", 1, (), True, "How fast.")
TIME = Row("time", "Time", "ms", 1, (), False, "How long.")


def result(label, kind, *values, failure=""):
    return Result(Competitor(label, kind, "nowhere:nothing"), [{"value": value} for value in values], failure)


def test_median_and_range():
    assert summarise([5.0, 1.0, 2.0]) == (2.0, 1.0, 5.0)


def test_an_advantage_is_above_one_whichever_way_better_points():
    assert advantage(SPEED, 20.0, 10.0) == 2.0
    assert advantage(TIME, 10.0, 20.0) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.069, "0.0690"), (1.234, "1.23"), (52.37, "52.4"), (999.6, "1,000"), (3421.0, "3,420"), (25_460.0, "25,500")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_table_compares_with_the_first_and_names_who_is_missing():
    results = [
        result("ours", "ours", 30.0, 10.0, 20.0),
        result("theirs", "peer", 5.0),
        result("absent", "peer", failure="not installed"),
        result("bound", "limit", 40.0),
    ]
    text = markdown([Measured(SPEED, 1, results)], {"CPU": "a processor"}, 3, 0.5)
    assert "| ours | 20.0 | 10.0 to 30.0 |" in text
    assert "| theirs | 5.00 | 5.00 to 5.00 | 4.00 x |" in text
    assert "| absent | - | - | not installed |" in text
    assert "the first reaches 50 % of it" in text
    assert "a processor" in text


def test_a_table_without_its_first_competitor_compares_nothing():
    results = [result("ours", "ours", failure="broken"), result("theirs", "peer", 5.0)]
    text = markdown([Measured(SPEED, 1, results)], {}, 1, 1.0)
    assert "| theirs | 5.00 | 5.00 to 5.00 |  |" in text


def test_publishing_replaces_what_is_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n<!-- profile --><!-- /profile -->")
    with pytest.raises(TableError, match="measure first"):
        publish(tmp_path, readme)
    (tmp_path / "table.md").write_text("new\n")
    publish(tmp_path, readme)
    publish(tmp_path, readme)
    begin = "before\n<!-- table -->\n\nnew\n\n<!-- /table -->\nafter\n<!-- profile -->"
    assert readme.read_text() == begin + "<!-- /profile -->"
    (tmp_path / "profile.md").write_text("parts\n")
    publish(tmp_path, readme)
    assert readme.read_text() == begin + "\n\nparts\n\n<!-- /profile -->"
    readme.write_text("no marks")
    with pytest.raises(TableError, match="no place for the table"):
        publish(tmp_path, readme)


def test_rates_and_times_are_of_what_was_done():
    calls = []
    answer = rate(lambda: calls.append(1), units=10)(0.01)
    assert answer["calls"] == len(calls) - 2
    assert answer["value"] == pytest.approx(10 * answer["calls"] / answer["seconds"])
    answer = milliseconds(lambda: calls.append(1), units=10)(0.01)
    assert answer["value"] == pytest.approx(1000 * answer["seconds"] / (10 * answer["calls"]))


def test_competitors_take_turns_in_processes_of_their_own(tmp_path):
    sizes = {"observation_size": 3, "action_size": 2, "hidden": [4], "batch_size": 4, "tasks": 1}
    competitors = (
        Competitor("ours", "ours", "benchmarks.ours.learners:sac", sizes | {"rows": 50, "stack": 1}),
        Competitor("broken", "ours", "benchmarks.ours.learners:sac_limit", sizes | {"library": "torch", "no": 1}),
        Competitor("theirs", "peer", "sac_sb3.py", {}),
    )
    row = Row("small", "Small", "updates/s", 1, competitors, True, "")
    lines = []
    (measured,) = measure([row], rounds=2, seconds=0.05, peers_python=tmp_path / "none", out=tmp_path, log=lines.append)
    ours, broken, theirs = measured.results
    assert len(ours.rounds) == 2
    assert all(answer["value"] > 0 for answer in ours.rounds)
    assert "unexpected keyword argument 'no'" in broken.failure
    assert "make bench-peers" in theirs.failure
    assert [line.split()[0] for line in lines] == [f"{n}/6" for n in range(1, 7)]
    assert "left" in lines[0]


def test_a_profile_accounts_for_all_of_the_time(tmp_path):
    sizes = {"observation_size": 3, "action_size": 2, "hidden": [300, 300], "batch_size": 300, "tasks": 1}
    answer = parts("benchmarks.ours.learners:sac", sizes | {"rows": 50, "stack": 1})(0.2)
    assert set(answer["parts"]) == set(KINDS)
    assert answer["parts"]["physics"] == 0
    assert max(answer["parts"], key=answer["parts"].__getitem__) == "matrix products"
    assert min(value for kind, value in answer["parts"].items() if kind != "physics") > 0
    text = profile([ROWS["sac"]], 0.1, tmp_path, lambda line: None)
    assert text.startswith("| ms a step | `sac` |")
    assert text.count("\n") == len(KINDS) + 4


@pytest.mark.parametrize("library", ["torch", "onednn"])
def test_the_limit_counts_the_products_that_autograd_makes(library):
    products = limit.Products().layers([3, 5, 2], 7, weights=True)
    assert products.flops == 2 * 7 * (2 * 15 + 3 * 10)  # no gradient for the input of the first layer
    products.layers([3, 5, 2], 7, inputs=True)
    assert products.flops == 2 * 7 * (2 * 15 + 3 * 10) + 2 * 7 * 2 * 25
    products.step(library)()
    left, right, out = products._calls[0]
    products.step("torch")()
    assert torch.allclose(out, left @ right)


def test_every_target_exists_and_peers_import_nothing_of_ours():
    for row in ROWS.values():
        for competitor in row.competitors:
            if competitor.kind == "peer":
                assert (ROOT / "benchmarks/peers" / competitor.target).exists()
            else:
                module, _, name = competitor.target.partition(":")
                __import__(module)
                assert callable(getattr(sys.modules[module], name))
    for script in (ROOT / "benchmarks/peers").glob("*.py"):
        assert not any(
            word in script.read_text() for word in ("import mbml", "from mbml", "from benchmarks", "pipeline")
        )


def test_the_driver_plans_three_jobs_a_task():
    few, many = (len(plan(configuration(tasks)).jobs) for tasks in (20, 40))
    assert many - few == 60


def summary(**changes):
    stage = {"jobs": 1, "reused": 0}
    cost = [{"stage": "collect", "work_seconds": 60.0, **stage}, {"stage": "distill", "work_seconds": 30.0, **stage}]
    return {"wall_seconds": 100.0, "cost": cost, "config": {"distill_cpus": 2}} | changes


def test_unused_share_of_a_run(tmp_path):
    assert unused_share(summary(), cpus=2)["value"] == pytest.approx(100 * (1 - 120 / 200))
    assert unused_share(summary(), cpus=1)["value"] == pytest.approx(100 * (1 - 90 / 100))
    reused = summary()
    reused["cost"][0]["reused"] = 1
    with pytest.raises(OrchestrationError, match="reused artefacts"):
        unused_share(reused, cpus=2)
    with pytest.raises(OrchestrationError, match="no cost"):
        unused_share(summary(wall_seconds=None), cpus=2)
    with pytest.raises(OrchestrationError, match="not the summary"):
        of_folder(tmp_path, cpus=2)
    (tmp_path / "run.json").write_text(json.dumps(summary()))
    assert of_folder(tmp_path, cpus=2)["wall_seconds"] == 100


def test_the_default_rows_leave_out_the_long_one():
    assert "orchestration" not in [row.name for row in chosen([])]
    assert [row.name for row in chosen(["orchestration", "sac"])] == ["orchestration", "sac"]


def test_bad_input_is_one_sentence(capsys, tmp_path):
    assert main(["--only", "sca", "--out", str(tmp_path)]) == 2
    assert "There is no row 'sca'; choose from sac," in capsys.readouterr().err
    assert main(["--only", "sac", "--rounds", "0", "--out", str(tmp_path)]) == 2
    assert main(["--profile", "--only", "driver", "--out", str(tmp_path)]) == 2
    assert "nothing to profile in driver; choose from sac," in capsys.readouterr().err
    assert main(["--publish", "--out", str(tmp_path / "none")]) == 2


def test_help_names_every_row(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ROWS)
