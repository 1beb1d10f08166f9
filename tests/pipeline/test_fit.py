"""From logs to a policy folder by one command: what comes out, what a second call reuses, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mbml import AdaptivePolicy
from mbml.data import Dataset
from mbml.settings import changed
from pipeline.command import main
from pipeline.fit import plan_fit
from pipeline.presets import preset
from pipeline.results import Results, cube

ROOT = Path(__file__).parents[2]
LENGTHS = {"m0": (30,) * 10, "m1": (30,) * 10, "m2": (7, 30), "m3": (12,), "m4": (40,) * 20, "m5": (30,) * 5}
"""Of every machine's episodes; m4 is held out."""


def write_logs(file: Path) -> Path:
    """Carts that are paid for being near a place that differs; in units of a workshop."""
    generator, rows = np.random.default_rng(0), []
    for number, (name, lengths) in enumerate(LENGTHS.items()):
        for episode, length in enumerate(lengths):
            place = generator.normal(500, 20)
            for step in range(length + 1):
                push = generator.uniform(0, 80)
                rows.append((name, episode, step, place, 3.5, push, -abs(place - 480 - 10 * number)))
                place += 0.2 * (push - 40)
    names = ("machine", "run", "tick", "place_mm", "load", "push_N", "paid")
    parquet.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), file)
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with logs and their column map."""
    folder = tmp_path_factory.mktemp("fit")
    write_logs(folder / "carts.parquet")
    said = {"task": "machine", "episode": "run", "step": "tick", "observation": ["place_mm", "load"]}
    said |= {"action": "push_N", "reward": "paid", "bounds": {"push_N": [0, 80]}, "units": {"place_mm": "mm"}}
    (folder / "columns.yaml").write_text(json.dumps(said))
    return folder


def command(place: Path, out: str, *more: str) -> list[str]:
    logs = ["--data", str(place / "carts.parquet"), "--columns", str(place / "columns.yaml")]
    where = ["--out", str(place / out), "--store", str(place / "store")]
    return ["fit", *logs, *where, "--preset", "smoke", "--held-out", "m4", *more]


@pytest.fixture(scope="module")
def out(place, embedded_ray) -> Path:
    """What the command left."""
    assert main(command(place, "out", "--methods", "evidence", "full")) == 0
    return place / "out"


def test_one_command_leaves_a_report_a_table_and_a_policy(out):
    assert {"README.md", "report.html", "results.parquet", "run.json", "policy", "dataset"} <= {
        path.name for path in out.iterdir()
    }
    said = (out / "README.md").read_text()
    for word in ("5 tasks, 1 held out", "smoke run mean nothing", "logged behaviour", "identified from 5", "chance"):
        assert word in said
    assert "task parameter" not in said  # this log has none
    results = Results.load(out)
    assert results.labels("train") == ["m0", "m1", "m2", "m3", "m5"]
    assert results.labels("test") == ["m4"]
    for name in ("evidence", "evidence, untold", "full", "blind_teacher", "own_teacher", "behaviour"):
        _, values = cube(results.rows("value", method=name), "task", "index")
        assert values.shape == (1, 20)
        assert (values <= 0).all()
        assert (values >= -200).all()
    logged = parquet.read_table(out.parent / "carts.parquet").to_pandas()
    paid = logged[(logged["machine"] == "m4") & (logged["tick"] < 40)]["paid"].mean()
    assert results.rows("logged_reward")["value"].tolist() == pytest.approx([paid])
    for split, number in (("test", 1), ("train", 5)):
        assert results.rows("difference", method="full", split=split)["value"].between(0, 4).sum() == number
    assert results.rows("identified_from", method="evidence")["index"].tolist() == [1, 5]
    assert results.methods("swap_follows_reward") == ["evidence", "full"]


def test_the_last_episodes_of_training_tasks_are_kept_from_learning(out):
    (adopted,) = (out.parent / "store" / "adopt").iterdir()
    kept, held = Dataset.open(adopted / "dataset"), Dataset.open(adopted / "held")
    assert held.task_indices == (0, 1)  # a tenth of the others' episodes is none
    whole = Dataset.open(out / "dataset")
    for index in held.task_indices:
        assert np.array_equal(
            np.concatenate([kept.task(index).reward, held.task(index).reward]), whole.task(index).reward
        )
        assert kept.meta(index)["episodes"] == 9
    assert kept.meta(5)["label"] == "m4"
    assert kept.meta(5)["rows"] == 800


def test_the_blind_teacher_is_one_of_those_that_were_compared_everywhere(out):
    (evaluated,) = (out.parent / "store" / "fqe").iterdir()
    found = json.loads((evaluated / "references.json").read_text())["train"]
    table = np.array(found["teachers"])  # [candidate, task]
    assert found["candidates"] == [0, 2]  # two of five
    assert table.shape == (2, 5)
    assert len(np.unique(table)) == 10
    assert len(found["own"]) == 5
    blind = json.loads((out / "run.json").read_text())["blind"]
    assert blind == found["candidates"][table.mean(1).argmax()]


def test_the_policy_speaks_the_language_of_the_log(out):
    policy = AdaptivePolicy.load(out / "policy")
    about = policy.description
    assert about.observation.names == ["place_mm", "load"]
    assert about.observation.units == ["mm", ""]
    assert about.observation.offset[0] == pytest.approx(500, abs=20)
    assert (about.action.names, about.action.low, about.action.high) == (["push_N"], [0.0], [80.0])
    assert (about.data.source, about.data.environment) == ("logged", "logged")
    assert [task.label for task in about.tasks] == ["m0", "m1", "m2", "m3", "m5"]
    assert about.scores[0].tasks == ["m4"]
    assert {"blind_teacher", "own_teacher", "behaviour"} <= set(about.scores[0].references)
    for _ in range(5):
        action = policy.act([501.5, 3.5])
        assert 0 <= action[0] <= 80
        policy.observe([501.5, 3.5], action, -20.0, [502.0, 3.5], False, False)
    assert str(out) not in (out / "policy" / "policy.json").read_text()


def test_the_same_logs_elsewhere_reuse_everything(out, place, capsys, embedded_ray):
    assert main(command(place, "again", "--methods", "evidence", "full")) == 0
    said = capsys.readouterr().out
    assert "Policy: " in said.splitlines()[-1]
    jobs = re.search(r"(\d+) jobs on", said)
    assert jobs is not None
    assert said.count("reused   ") == int(jobs[1])
    same = [(folder / "policy" / "policy.safetensors").read_bytes() for folder in (out, place / "again")]
    assert same[0] == same[1]


def test_keys_follow_what_is_learned_from_and_by(out):
    env = f"data:{out / 'dataset'}"
    config = preset(env, "smoke")
    before = set(plan_fit(config).jobs)
    for changes, kept in (
        ({"assess.contexts": 5}, {"adopt", "teach", "models", "relabel", "fqe", "distill", "familiarity"}),
        ({"fqe.steps": 41}, {"adopt", "teach", "models", "relabel", "familiarity"}),
        ({"varies": "dynamics"}, {"adopt", "teach", "fqe", "familiarity"}),
        ({"assess.held_episodes": 0.5}, set()),
    ):
        after = plan_fit(changed(config, changes)).jobs
        assert {ref.stage for ref in after if ref in before} == kept, changes


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--held-out", "m9"],
            "There is no task m9 to hold out; give a share between 0 and 1, or names of tasks: m0, m1, m2, m3, m4, m5.",
        ),
        (
            ["--held-out", "m0", "m1", "m2", "m3", "m4"],
            "Of 6 in all, tasks to learn from would be 1, held out 5; at least 2 and 1 are needed.",
        ),
        (["--held-out"], "Say with --held-out which tasks to judge by"),
        (["--distill-seeds", "0", "0"], "distill_seeds is (0, 0); give one or more, each once"),
        (["--methods"], "methods is (); give one or more, each once"),
        (["--methods", "full", "full"], "methods is ('full', 'full')"),
        (["--horizon", "3"], "leave out train_tasks, test_tasks and horizon"),
        (["--relabel.source", "ground_truth"], "ground_truth needs a reward function; logged data has"),
        (["--num-cpus", "0"], "num_cpus is 0"),
        (["--checkpoint-seconds", "nan"], "checkpoint_seconds is nan"),
        (["--store", "/dev/null"], "The store /dev/null cannot be written to"),
        (["--out", "/dev/null"], "--out is '/dev/null', which is no folder"),
        (["--out", "s3://x/y"], "should be a folder of this machine"),
        (["--env", "umaze_goal"], "fit learns from logs alone; leave out --env umaze_goal."),
        (["--methods", "metagenrl"], "metagenrl"),
        (["--methods", "ground_truth"], "ground_truth needs a reward function"),
        (["--pooled.teacher", "iql"], "fit has logs"),
        (["--train-tasks", "2"], "leave out train_tasks, test_tasks"),
        (["--encoder", "mean"], "encoder is mean, but evidence has its own"),
        (["--needs", "fly:memory=1"], "'fly' is no stage"),
        (["--held-out", "1.5"], "no task 1.5 to hold out; give a share between 0 and 1, or names of tasks"),
        (["--fqe.steps", "0"], "fqe.steps is 0"),
        (["--data", "/no/such/logs"], "/no/such/logs does not exist"),
    ],
)
def test_bad_input_is_one_sentence(place, tmp_path, capsys, more, words):
    arguments = [*command(place, "bad"), "--out", str(tmp_path / "out"), *more]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert not (tmp_path / "out").exists()  # nothing half written


def test_other_rules_make_another_dataset_beside_the_first(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where nothing answers: it ends when the logs are read
    made = []
    for more in (["--held-out", "0.2"], ["--held-out", "0.2", "--seed", "3"], ["--held-out", "0.2"]):
        arguments = [*command(place, "rules"), "--out", str(tmp_path / "out"), *more]
        assert main(arguments) == 2
        assert "No Ray cluster answers" in capsys.readouterr().err
        made.append({path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/dataset*")})
    assert list(made[0]) == ["dataset"]
    assert len(made[1]) == 2
    assert made[0].items() < made[1].items()
    assert made[1] == made[2]
    held_out = [Dataset.open(tmp_path / "out" / name).collection["held_out"] for name in sorted(made[1])]
    assert [len(names) for names in held_out] == [1, 1]


def test_a_logged_dataset_cannot_be_run_and_fit_needs_a_folder(out, place, capsys):
    assert main(["run", "--env", f"data:{out / 'dataset'}", "--store", str(place / "store")]) == 2
    assert "is logged data without a simulator; give its folder to python -m pipeline fit" in capsys.readouterr().err
    assert main(["fit", "--data", str(place / "carts.parquet")]) == 2
    assert "Say with --out" in capsys.readouterr().err


def test_ctrl_c_ends_a_fit_and_the_same_command_continues_it(place, embedded_ray, capsys):
    long = command(place, "stopped", "--evidence.steps", "4000", "--evidence.snapshot-every", "250")
    long[long.index("--store") + 1] = str(place / "own-store")
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    how = {"cwd": ROOT, "env": surroundings, "text": True, "start_new_session": True}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *long], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how
    ) as process:
        while not list((place / "own-store").glob("distill/*.partial/snapshots/step-0000250.safetensors")):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Interrupted. What is finished is kept; the same command continues."
    assert "Traceback" not in said
    assert not (place / "stopped" / "policy").exists()
    assert main(long) == 0  # on the Ray of the tests
    said = capsys.readouterr().out
    assert "reused   teach" in said
    AdaptivePolicy.load(place / "stopped" / "policy")
