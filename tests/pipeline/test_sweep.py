"""Sweeps through a real Ray Tune on an embedded Ray: table and figures, what is shared, stopping and continuing."""

import csv
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.artefacts import read_json
from actors.store import Store
from pipeline.__main__ import main
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
HALVING = "grid:\n  distill.kl_weight: [0.1, 0.2, 0.3, 0.4, 0.5]\nseeds: [0]\nasha: true\n"


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
    assert not outcome.done


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
