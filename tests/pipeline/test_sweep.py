"""Sweeps through a real Ray Tune on an embedded Ray: table and figures, what is shared, stopping and continuing."""

import csv
import itertools
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

from actors.artefacts import read_json
from actors.store import Store
from pipeline.command import main
from pipeline.config import Place
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.results import Results
from pipeline.scheduler import execute
from pipeline.sweep import draw_figures, run_sweep
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults

ROOT = Path(__file__).resolve().parents[2]
RIVALS = "methods: [full, contextual_bcq, batch_pearl]\nseeds: [0, 1]\n"
MARGINS = "grid:\n  distill.margin: [2, 4]\nseeds: [0, 1]\n"
HALVING = "grid:\n  distill.kl_weight: [0.1, 0.2, 0.3, 0.4, 0.5]\nseeds: [0]\nscheduler: asha\n"


class Sweeps:
    """A store with a folder for results, and what the sweeps in it said."""

    def __init__(self, folder: Path):
        self.folder, self.store, self.said = folder, Store(folder / "store"), []

    def sweep(self, name: str, text: str):
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        sweep = load_sweep(str(file))
        config = sweep_defaults(sweep, preset("umaze_goal", "smoke"))
        self.said = []
        code = run_sweep(sweep, config, Place(self.store.url, num_cpus=2), self.folder / name, self.said.append)
        return code, plan(config, runnable(sweep, config, print))

    def rows(self, name: str) -> list[dict]:
        with (self.folder / name / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def created(self, references) -> dict:
        return {reference: self.store.describe(*reference)["created"] for reference in references}


@pytest.fixture(scope="module")
def place(tmp_path_factory, embedded_ray):
    return Sweeps(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def rivals(place):
    return place.sweep("rivals", RIVALS)


def test_every_trial_and_evaluation_is_a_row(place, rivals):
    code, jobs = rivals
    assert code == 0
    rows = place.rows("rivals")
    compared = itertools.product(("full", "contextual_bcq", "batch_pearl"), (0, 1), (10, 20))
    assert [(row["variant"], int(row["seed"]), int(row["step"])) for row in rows] == list(compared)
    evaluations = [reference for one in jobs.runs for reference in one.evaluations.values()]
    for row, reference in zip(rows, evaluations, strict=True):
        scores = read_json(place.store.fetch(*reference) / "scores.json")
        for split in ("test", "train"):
            wanted = sum(scores[split]["score"]) / len(scores[split]["score"])
            assert float(row[f"{split}_mean"]) == pytest.approx(wanted)
    results = Results.load(place.folder / "rivals")
    assert len(results.rows("score")) == len(rows) * (2 + 3)  # unseen and training tasks
    for name in ("report.html", "report.md", "run.json", "comparison.png", "learning.png"):
        assert (place.folder / "rivals" / name).stat().st_size > 1000


def test_progress_says_which_trial_how_far_and_how_long(place, rivals):
    lines = [line for line in place.said if line.startswith("running") and "   step " in line]
    assert len(lines) == 12
    assert all("test_return=" in line and "left" in line for line in lines[:-1])
    assert any("6/6 trials, 100%" in line for line in place.said)


def test_a_sweep_makes_only_what_is_missing(place, rivals):
    shared = [run.trained for run in rivals[1].runs if run.variant.method == "full"]
    data = [job.ref for job in rivals[1].shared()]
    before = place.created(shared + data)
    code, jobs = place.sweep("margins", MARGINS)
    assert code == 0
    assert [run.trained for run in jobs.runs if run.variant.label == "margin=2"] == shared
    assert place.created(shared + data) == before
    assert {float(row["distill.margin"]) for row in place.rows("margins")} == {2, 4}
    again = [reference for run in jobs.runs for reference in run.artefacts()]
    made = place.created(again)
    assert place.sweep("margins", MARGINS)[0] == 0
    assert "4 trials reused, 0 to run" in place.said
    assert place.created(again) == made


def test_a_trial_makes_the_artefacts_that_a_run_would_make(place, rivals):
    config = sweep_defaults(load_sweep(str(place.folder / "rivals.yaml")), preset("umaze_goal", "smoke"))
    outcome = execute(plan(config).jobs.values(), place.store.url, log=lambda line: None)
    assert outcome.complete
    assert outcome.done == ["familiarity (umaze_goal)"]  # of the policy, which a sweep does not hand over


def test_a_trial_that_fails_is_named_and_the_others_are_kept_on_no_more_processors_than_a_machine_has(place, rivals):
    text = "methods: [neither, contextual_bcq]\nseeds: [0]\nset:\n  distill_cpus: 8\n"
    (place.folder / "failing.yaml").write_text(text)
    sweep = load_sweep(str(place.folder / "failing.yaml"))
    config = sweep_defaults(sweep, preset("umaze_goal", "smoke"))
    jobs = plan(config, runnable(sweep, config, print))
    broken = place.folder / "store" / "/".join(jobs.runs[0].trained)
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("a file where the artefact's folder should be")
    code, _ = place.sweep("failing", text)
    assert code == 1
    assert any(line.startswith("FAILED   neither seed 0: ") for line in place.said)
    assert {row["variant"] for row in place.rows("failing")} == {"contextual_bcq"}
    broken.unlink()
    assert place.sweep("failing", text)[0] == 0


def test_poor_trials_are_stopped_early_and_left_out(place, rivals):
    code, jobs = place.sweep("halving", HALVING)
    assert code == 0
    finished = {row["variant"] for row in place.rows("halving")}
    everyone = {run.variant.label for run in jobs.runs}
    assert finished < everyone
    for run in jobs.runs:
        if run.variant.label not in finished:
            assert not place.store.complete(*run.trained)


def trials_of_hparams(folder: Path) -> dict[str, dict]:
    """What TensorBoard's HParams reads: by session, what was set."""
    found = {}
    for file in folder.glob("*/events*"):
        data, settings = file.read_bytes(), {}
        while data:  # records of length, checksum, event, checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                if value.tag == "_hparams_/session_start_info":
                    begun = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
                    settings |= {name: one.number_value or one.string_value for name, one in begun.hparams.items()}
                elif value.HasField("simple_value"):
                    settings[value.tag] = value.simple_value
        found[file.parent.name] = settings
    return found


def test_a_search_adds_to_what_stands_names_the_best_on_training_tasks_and_fills_hparams(place, rivals):
    text = "search:\n  distill.margin: {uniform: [0, 8]}\nobjective: train_worst\nmax_concurrent: 1\nseeds: [0]\n"
    assert place.sweep("search", text + "samples: 1\n")[0] == 0
    code, jobs = place.sweep("search", text + "samples: 2\n")
    assert code == 0
    assert "1 trials reused, 1 to run" in place.said
    rows, results = place.rows("search"), Results.load(place.folder / "search")
    assert [row["variant"] for row in rows] == [run.variant.label for run in jobs.runs for _ in run.evaluations]
    worst = {name: results.scores(name, "train")[1][0, -1].min() for name in results.methods("score")}
    assert results.run["sweep"]["best"] == max(worst, key=lambda name: worst[name])
    assert results.run["sweep"]["objective"] == "return on the worst training task"
    shown = trials_of_hparams(place.folder / "search" / "tensorboard")
    for row in (row for row in rows if row["step"] == "20"):
        own = shown[f"{row['variant']} seed 0"]
        assert own["distill.margin"] == pytest.approx(float(row["distill.margin"]))
        assert own["train_return"] == pytest.approx(float(row["train_mean"]))
        assert own["method"] == "full"


def test_a_grid_that_was_changed_reuses_what_stands(place, rivals):
    place.sweep("changed", "grid:\n  distill.margin: [3, 5]\nseeds: [0]\n")
    assert place.sweep("changed", "grid:\n  distill.margin: [3, 9]\nseeds: [0]\n")[0] == 0
    assert "1 trials reused, 1 to run" in place.said
    assert {row["distill.margin"] for row in place.rows("changed")} == {"3.0", "9.0"}


def test_a_time_budget_ends_trials_and_the_same_command_goes_on(place, rivals):
    place.sweep("budget", "grid:\n  distill.margin: [11]\nseeds: [0]\n")  # so that there is something to report
    slow = "grid:\n  distill.margin: [11, 12, 13]\nseeds: [0]\nmax_concurrent: 1\ntime_budget: 1\n"
    assert place.sweep("budget", slow)[0] == 0
    assert any("trials have not ended in 1 s; the same command goes on" in line for line in place.said)
    assert place.sweep("budget", slow.replace("time_budget: 1\n", ""))[0] == 0
    assert len(place.rows("budget")) == 6


def test_optuna_suggests_round_by_round_and_the_same_command_finds_what_stands(place, rivals):
    pytest.importorskip("optuna", reason="optuna is not installed")
    text = "search:\n  distill.margin: {uniform: [0, 8]}\nseeds: [0]\nsearcher: optuna\nmax_concurrent: 2\n"
    code, _ = place.sweep("suggested", text + "samples: 3\n")
    assert code == 0
    assert any(line.startswith("trials are judged by the mean return on the training") for line in place.said)
    found = [row["distill.margin"] for row in place.rows("suggested")]
    assert len(set(found)) == 3
    assert place.sweep("suggested", text + "samples: 3\n")[0] == 0
    assert [line for line in place.said if "to run" in line] == [
        "2 trials reused, 0 to run",
        "3 trials reused, 0 to run",
    ]
    assert [row["distill.margin"] for row in place.rows("suggested")] == found


def test_figures_are_drawn_from_what_stands_and_say_what_is_missing(place, rivals, tmp_path):
    config = preset("umaze_goal", "smoke")
    said = []
    with pytest.raises(ValueError, match="make sweep SWEEP=") as nothing:
        draw_figures(config, Place(str(tmp_path / "empty")), tmp_path / "figures", said.append)
    for name, sweep in (("figure-02", "ablations"), ("figure-05", "metagenrl"), ("figure-11", "triplet_margin")):
        (line,) = (line for line in str(nothing.value).splitlines() if line.startswith(name))
        assert f"make sweep SWEEP={sweep} ENV=umaze_goal PRESET=smoke SEED=0" in line
    assert not (tmp_path / "figures").exists()
    assert draw_figures(config, Place(place.store.url), tmp_path / "figures", said.append) == 0
    drawn = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert "figure-04.png" in drawn
    assert "figure-06.png" in drawn  # of the ablations only `full` stands
    lines = {line.partition(":")[0]: line for line in said}
    assert "MetaGenRL" in lines["figure-05"]
    assert "runs on ant_dir alone" in lines["figure-05"]
    for name in lines.keys() & {"figure-02", "figure-07", "figure-11"}:
        assert f"{name}.png" in drawn or "ENV=umaze_goal PRESET=smoke SEED=0" in lines[name]
    assert "make warmstart ENV=umaze_goal" in lines["figure-08, figure-12, figure-13"]


def test_ctrl_c_ends_a_sweep_and_the_same_command_continues_it(place, rivals, tmp_path):
    margin = "grid:\n  distill.margin: [6, 7]\nset:\n  distill.steps: 3000\n  distill.snapshot_every: 250\nseeds: [0]\n"
    (tmp_path / "long.yaml").write_text(margin)
    options = ["sweep", "--sweep", str(tmp_path / "long.yaml"), "--env", "umaze_goal", "--preset", "smoke"]
    options += ["--store", place.store.url, "--out", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *options],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 500/" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    assert "the same command continues" in rest
    assert "Traceback" not in rest
    sweep = load_sweep(str(tmp_path / "long.yaml"))
    config = sweep_defaults(sweep, preset("umaze_goal", "smoke"))
    jobs = plan(config, runnable(sweep, config, print))
    evaluations = [reference for run in jobs.runs for reference in run.evaluations.values()]
    evaluated = [reference for reference in evaluations if place.store.complete(*reference)]
    assert 2 <= len(evaluated) < len(evaluations)
    before = place.created(evaluated)
    assert main(options) == 0  # on the Ray of the tests, which starts no other
    assert place.created(evaluated) == before
    assert all(place.store.complete(*reference) for reference in evaluations)
