"""The command line: bad input is one clear message and exit code 2, before anything is computed or written."""

import importlib
import json
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbml.data import DatasetWriter, TransitionBatch
from pipeline.command import main
from pipeline.publish import alone_in
from pipeline.stopping import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]


def random_batch(rows: int) -> TransitionBatch:
    """One episode, truncated at its end."""
    make = np.random.default_rng(0)
    path = make.normal(size=(rows + 1, 4)).astype(np.float32)
    return TransitionBatch(
        observation=path[:-1],
        action=make.uniform(-1, 1, (rows, 2)).astype(np.float32),
        next_observation=path[1:],
        reward=make.normal(size=rows).astype(np.float32),
        terminated=np.zeros(rows, bool),
        truncated=np.arange(rows) == rows - 1,
        episode=np.zeros(rows, np.int32),
        step=np.arange(rows, dtype=np.int32),
    )


def refused(capsys, *arguments) -> str:
    """Run the command line, check exit code 2, and return what it said."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # tyro refuses unknown fields and wrong types itself
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in said.out + said.err
    return " ".join((said.out + said.err).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["walk"], ["walk", "run, sweep, warmstart, figures, report, export-policy, fit, import, validate, export"]),
        (["run"], ["--env", "umaze_goal", "walker_param"]),
        (["run", "--env"], ["--env"]),
        (["run", "--env", "umaze"], ["umaze", "umaze_goal", "ant_dir"]),
        (["run", "--env", "umaze_goal", "--preset", "huge"], ["huge", "smoke, laptop, paper"]),
        (["run", "--env", "umaze_goal", "--collect.stps", "5"], ["--collect.stps", "--collect.steps"]),
        (["run", "--env", "umaze_goal", "--collect.steps", "many"], ["--collect.steps", "many"]),
        (["run", "--env", "umaze_goal", "--collect.steps", "0"], ["collect.steps is 0", "equal to 1"]),
        (["run", "--env", "umaze_goal", "--seed", "12345678901234567890"], ["seed is 12345678901234567890"]),
        (["run", "--env", "umaze_goal", "--distill.learning-rate", "inf"], ["distill.learning_rate is inf"]),
        (["run", "--env", "umaze_goal", "--distill.learning-rate", "nan"], ["distill.learning_rate is nan"]),
        (["run", "--env", "umaze_goal", "--distill.learning-rate=-1"], ["distill.learning_rate is -1"]),
        (["run", "--env", "umaze_goal", "--teacher", "dqn"], ["dqn", "bcq"]),
        (["run", "--env", "umaze_goal", "--train-tasks", "99"], ["train_tasks is 99", "10"]),
        (["run", "--env", "umaze_goal", "--train-tasks", "1"], ["at least 2"]),
        (["run", "--env", "umaze_goal", "--horizon", "301"], ["301", "300"]),
        (["run", "--env", "umaze_goal", "--methods", "fulll"], ["fulll", "full", "no_relabelling"]),
        (["run", "--env", "umaze_goal", "--store", "nosuch://x"], ["nosuch"]),
        (["run", "--env", "umaze_goal", "--store", "/proc/none"], ["/proc/none"]),
        (["run", "--env", "umaze_goal", "--store", "store", "--out", "/proc/none"], ["/proc/none", "--out"]),
        (["run", "--env", "umaze_goal", "--methods", "metagenrl"], ["metagenrl", "ant_dir"]),
        (["run", "--env", "umaze_goal", "--out", "s3://x/y"], ["--out is s3://x/y", "--report-in-store"]),
        (["report", "--env", "umaze_goal", "--out", "s3://x/y"], ["--out is s3://x/y", "--store"]),
        (["fit", "--data", "logs", "--out", "s3://x/y"], ["--out is s3://x/y", "--store"]),
        (["import", "--data", "logs", "--out", "s3://x/y"], ["--out is s3://x/y", "a folder of this machine"]),
        (["sweep", "--env", "umaze_goal"], ["--sweep", "ablations", "triplet_margin"]),
        (["sweep", "--sweep", "ablations"], ["--env", "umaze_goal"]),
        (["sweep", "--sweep", "margins", "--env", "umaze_goal"], ["margins", "ablations", "triplet_margin"]),
        (["sweep", "--sweep", "ablations", "--env", "umaze_goal", "--distill.steps", "0"], ["distill.steps is 0"]),
        (["sweep", "--sweep", "metagenrl", "--env", "umaze_goal", "--methods", "x"], ["x", "full"]),
        (["figures", "--env", "umaze_goal", "--store", "store"], ["umaze_goal", "ablations", "make sweep SWEEP="]),
        (["run", "--env", "umaze_goal", "--store", "memory://x"], ["memory://x"]),
        (["validate"], ["validate", "folder"]),
        (["export", "store"], ["export", "Where the files go"]),
        (["export", "/no/such/dataset", "out"], ["/no/such/dataset"]),
        (["validate", "/no/such/dataset"], ["/no/such/dataset"]),
    ],
)
def test_bad_input_is_one_sentence_with_the_valid_choices(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *arguments)
    for word in words:
        assert word in said
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}
    assert not list(tmp_path.glob("store/*"))


def test_a_report_without_its_artefacts_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "report", "--env", "umaze_goal", "--store", str(tmp_path / "store"))
    assert "is absent or incomplete" in said


def test_no_ray_at_the_address_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "127.0.0.1:1" in refused(capsys, "run", "--env", "umaze_goal", "--preset", "smoke")


def test_help_names_the_commands_and_every_field(capsys):
    for arguments, words in ((["--help"], "validate"), ([], "warmstart"), (["run", "--help"], "--distill.margin")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_help_says_what_is_required_and_the_bounds_of_numbers(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "module:family of your own. (required)" in said
    for name, bounds in (("collect.steps", "INT >= 1"), ("seed", "INT >= 0"), ("distill.learning-rate", "FLOAT > 0")):
        assert f"--{name} {bounds} " in said
    with pytest.raises(SystemExit):
        main(["run", "--env", "umaze_goal", "--help"])
    assert "(default: umaze_goal)" in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_an_installed_copy_has_its_command_and_all_its_files():
    """What a wheel would hold: the command's function, and every file of data under a pattern of its package."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, name = about["project"]["scripts"]["mbml"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    patterns = about["tool"]["setuptools"]["package-data"]
    for package in ("mbml", "actors", "pipeline"):
        for folder in (path for path in (ROOT / package).rglob("*") if path.suffix not in (".py", ".pyc")):
            if folder.is_file():
                packages = [parent for parent in folder.parents if (parent / "__init__.py").exists()]
                relative = folder.relative_to(packages[0])
                own = patterns["*"] + patterns.get(".".join(packages[0].relative_to(ROOT).parts), [])
                assert any(
                    relative.match(pattern) and len(Path(pattern).parts) == len(relative.parts) for pattern in own
                )


def test_help_names_the_program_that_was_called(capsys, monkeypatch):
    for called, words in (("/usr/bin/mbml", "usage: mbml play"), ("x/__main__.py", "usage: python -m pipeline play")):
        monkeypatch.setattr(sys, "argv", [called])
        with pytest.raises(SystemExit):
            main(["play", "--help"])
        assert words in capsys.readouterr().out


def test_help_that_nobody_reads_to_its_end_ends_quietly():
    command = f"set -o pipefail; {sys.executable} -m pipeline run --help | head -3"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("usage: ")
    assert not ended.stderr


def test_a_folder_that_is_no_dataset_is_refused_with_those_that_are(capsys, tmp_path):
    assert "<store>/collect/<key>/dataset" in refused(capsys, "validate", str(tmp_path))
    dataset = tmp_path / "collect" / "0123" / "dataset"
    with DatasetWriter(
        dataset, environment="umaze_goal", observation_size=4, action_size=2, horizon=30, collection={}
    ) as writer:
        writer.add_task(0, random_batch(30), parameter=[0.0], label="0")
    for folder in (tmp_path, dataset.parent):
        assert f"give {dataset}." in refused(capsys, "validate", str(folder))
        assert f"give {dataset}." in refused(capsys, "export", str(folder), str(tmp_path / "out"))
    assert "folder is s3://x/y" in refused(capsys, "export", str(dataset), "s3://x/y")
    for inside in (dataset, dataset / "in"):
        assert "in the dataset's own folder" in refused(capsys, "export", str(dataset), str(inside))
    assert not (dataset / "in").exists()
    assert main(["validate", str(dataset)]) == 0


def test_a_damaged_artefact_is_refused_by_name(capsys, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"schema_version": 999}))
    assert "meta.json" in refused(capsys, "validate", str(tmp_path))


def test_export_writes_every_task(capsys, tmp_path):
    rows = random_batch(30)
    with DatasetWriter(
        tmp_path / "data", environment="umaze_goal", observation_size=4, action_size=2, horizon=30, collection={}
    ) as writer:
        for task in (0, 3):
            writer.add_task(task, rows, parameter=[0.0], label=str(task))
    assert main(["export", str(tmp_path / "data"), str(tmp_path / "out")]) == 0
    assert "2 tasks as parquet" in capsys.readouterr().out
    for task in (0, 3):
        table = pq.read_table(tmp_path / "out" / f"task-{task:03d}.parquet")
        assert sorted(table["rewards"].to_pylist()) == sorted(rows.reward.tolist())
        assert table["rewards"].to_pylist() != rows.reward.tolist()  # not in the order of collection


def test_a_file_that_cannot_be_written_is_a_sentence_and_exit_code_1(capsys, tmp_path):
    test_export_writes_every_task(capsys, tmp_path)
    (tmp_path / "there" / "task-000.parquet").mkdir(parents=True)
    assert main(["export", str(tmp_path / "data"), str(tmp_path / "there")]) == 1
    found = capsys.readouterr().err
    assert found.startswith("error: Is a directory: ")
    assert "task-000.parquet" in found
    assert "Traceback" not in found


FAMILY = "from mbml.envs import family\nimport gymnasium\n"
FAMILIES = {
    "x = = 3": "cannot be imported: SyntaxError",
    "raise SystemExit(0)": "cannot be imported: SystemExit: 0.",
    FAMILY + "def make(p):\n    raise SystemExit(0)\nfam = family('f', make=make, train=[1, 2], test=[3])": (
        "make of f fails with SystemExit: 0 ("
    ),
    "1 / 0": "cannot be imported: ZeroDivisionError: division by zero",
    FAMILY + "def make(p):\n    raise OSError('no such robot')\nfam = family('f', make=make, train=[1, 2], test=[3])": (
        "make of f fails with OSError: no such robot"
    ),
    FAMILY + "fam = family('f', make=lambda p: gymnasium.make('CartPole-v1'), train=[1, 2], test=[3])": (
        "f has the actions Discrete(2)"
    ),
}


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_a_family_that_cannot_be_used_is_refused_before_anything_is_written(number, tmp_path, monkeypatch, capsys):
    source, words = list(FAMILIES.items())[number]
    (tmp_path / f"broken_{number}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert words in refused(capsys, "run", "--env", f"broken_{number}:fam", "--preset", "smoke", "--train-tasks", "2")
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_a_report_of_a_run_that_is_not_there_says_what_to_run(tmp_path, capsys):
    said = refused(capsys, "report", "--env", "umaze_goal", "--preset", "smoke", "--store", str(tmp_path / "store"))
    assert "no finished run of umaze_goal, preset smoke, seed 0" in said
    assert "make pipeline ENV=umaze_goal" in said


@pytest.mark.parametrize("command", ["run", "fit", "warmstart", "export-policy", "import"])
def test_a_file_as_out_is_refused(command, capsys, tmp_path):
    (tmp_path / "out").write_text("mine")
    (tmp_path / "logs.csv").write_text("reward\n1\n")
    own = ["--data", str(tmp_path / "logs.csv")] if command in ("fit", "import") else ["--env", "umaze_goal"]
    more = [] if command == "import" else ["--store", str(tmp_path / "store")]
    said = refused(capsys, command, *own, *more, "--out", str(tmp_path / "out"))
    assert str(tmp_path / "out") in said
    assert "folder" in said or "--out" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_no_processors_are_refused(capsys):
    assert "num_cpus is 0" in refused(capsys, "run", "--env", "umaze_goal", "--preset", "smoke", "--num-cpus", "0")


@pytest.mark.parametrize("loads", ["libtorch", "libmujoco"])
@pytest.mark.parametrize("sent", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)])
def test_a_command_that_is_stopped_while_it_loads_its_modules_says_one_sentence(sent, loads, tmp_path):
    command = [sys.executable, "-m", "pipeline", "run", "--env", "umaze_goal", "--preset", "smoke"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--store", str(tmp_path / "store")], **pipes) as process:
        while loads not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.005)
        for number in sent:
            process.send_signal(number)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, "", f"{INTERRUPTED}\n")
    assert not (tmp_path / "store").exists()


_CONVERTED = """
import signal, sys
from pipeline import __main__, command

def main():
    try:
        if sys.argv[1:]:
            signal.raise_signal(int(sys.argv[1]))
    except KeyboardInterrupt:
        raise RuntimeError("Error calling __set_name__") from None
    raise RuntimeError("nobody stopped it")

command.main = main
__main__.console()
"""


def test_what_a_module_that_is_loaded_makes_of_a_signal_is_still_one_and_other_errors_are_not():
    def ends(*sent: signal.Signals) -> tuple[int, str]:
        command = [sys.executable, "-c", _CONVERTED, *(str(int(number)) for number in sent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert ends(signal.SIGTERM) == (130, f"{INTERRUPTED}\n")
    code, said = ends()
    assert (code, said.splitlines()[-1]) == (1, "RuntimeError: nobody stopped it")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_command_without_an_output_runs_all_the_same(closed, tmp_path):
    line = f'"{sys.executable}" -m pipeline validate "{tmp_path}" {closed}'
    assert subprocess.run(["bash", "-c", line], timeout=60, stderr=subprocess.PIPE).returncode == 2


_FORKING = """
import os, signal, sys, time
from pipeline.stopping import listen
listen()
once = iter([signal.SIGINT])
os.register_at_fork(after_in_parent=lambda: [signal.raise_signal(number) for number in once])
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_a_signal_that_a_callback_of_python_s_swallows_comes_again_and_nothing_of_it_is_shown():
    command = [sys.executable, "-c", _FORKING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_commands_that_write_their_report_into_one_folder_take_turns(tmp_path):
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with alone_in(tmp_path, said.append):
            order.append("second")

    with alone_in(tmp_path, said.append):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert said == [f"waiting for another command that writes its report into {tmp_path}"]


def test_more_processors_than_ray_can_start_are_refused(capsys, tmp_path):
    own = ["run", "--env", "umaze_goal", "--preset", "smoke", "--store", str(tmp_path)]
    assert "--num-cpus 1000000000 is more than Ray can start" in refused(capsys, *own, "--num-cpus", "1000000000")


_LEAVING = """
import atexit, sys, time
from pipeline.stopping import leave, listen
listen()
atexit.register(time.sleep, 1)
atexit.register(print, "leaving", flush=True)
leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_last_line_changes_nothing(number):
    """Python takes a second to end, and has set signals back to what they do without a handler by then."""
    command = [sys.executable, "-c", _LEAVING, "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "")


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    own = ["run", "--env", "umaze_goal", "--preset", "smoke", "--store", str(tmp_path / "store")]
    for out in (" ", "file", "file/x", "loop", "loop/x", "x" * 400):
        given = out if out.isspace() else str(tmp_path / out)
        for command in (own, ["import", "--data", "nothing"]):
            assert f"--out is {given!r}, which " in refused(capsys, *command, "--out", given)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop", "pool"}


def test_more_snapshots_than_can_be_evaluated_are_refused(capsys):
    given = ["--env", "umaze_goal", "--preset", "smoke", "--distill.steps", "1000000000000000000"]
    assert "snapshots every 10 of 1,000,000,000,000,000,000 steps" in refused(capsys, "run", *given)
