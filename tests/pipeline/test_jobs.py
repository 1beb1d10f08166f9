"""Runs as jobs of a real cluster that asks for a token, which is in a file of its user's home."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from actors.store import Store
from pipeline.command import main
from tests.pipeline.growing_cluster import job_server

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--preset", "smoke", "--train-tasks", "2", "--test-tasks", "1", "--methods", "full"]


@dataclass
class Cluster:
    """Where a job server listens, and the environment of its users."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env=self.environment | {"PYTHONPATH": str(ROOT)} | changes,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *arguments: str, **changes: str) -> tuple[int, str]:
        with self.start(*arguments, **changes) as process:
            said, _ = process.communicate(timeout=400)
        return process.returncode, said


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if "MBML_CLUSTERS" not in os.environ:
        pytest.skip("a head with a job server needs a quiet machine; MBML_CLUSTERS=1 runs it")
    folder = tmp_path_factory.mktemp("jobs")
    with job_server(folder) as environment:
        yield Cluster(folder, environment)


def submit(store: Path, *arguments: str) -> list[str]:
    return ["submit", "--python", sys.executable, *arguments, *SMALL, "--store", str(store)]


def test_a_job_is_followed_leaves_its_report_in_the_store_and_ends_with_its_code(cluster, tmp_path):
    code, said = cluster.run(*submit(tmp_path / "store", "run", "--env", "umaze_goal"))
    assert code == 0, said
    assert "jobs on Ray cluster at" in said  # its own log
    assert "succeeded" in said.splitlines()[-1]
    code, listed = cluster.run("status")
    assert code == 0
    assert re.search(r"raysubmit_\w+  SUCCEEDED  \d{4}-.* run --env umaze_goal --preset smoke", listed)
    code, fetched = cluster.run("fetch", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "here"))
    assert code == 0, fetched
    brought = tmp_path / "here" / "umaze_goal-smoke-seed0"
    assert (brought / "report.html").stat().st_size > 1000
    assert (brought / "results.parquet").exists()
    assert any((brought / "policy").iterdir())
    assert json.loads((brought / "run.json").read_text())["timeline"]


def test_ctrl_c_leaves_the_job_which_can_be_followed_again_and_stopped(cluster, tmp_path):
    steps = ["--distill.steps", "100000", "--distill.snapshot-every", "50000"]
    with cluster.start(*submit(tmp_path / "store", "run", "--env", "umaze_goal", *steps)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "started  collect" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    assert "Traceback" not in rest
    (job,) = re.findall(r"Job (raysubmit_\w+) goes on. To come back: make logs JOB=\1 RAY_ADDRESS=http", rest)
    with cluster.start("logs", job) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "started  collect" in line:  # from the beginning
                break
        assert cluster.run("stop", job)[0] == 0
        rest = process.stdout.read()
        assert process.wait(60) == 1, rest
    assert f"job {job} stopped" in rest
    assert re.search(rf"{job}  STOPPED", cluster.run("status")[1])


def test_the_files_that_a_command_names_travel_with_it_and_bad_input_ends_with_code_2(cluster, tmp_path):
    (cluster.folder / "mine.yaml").write_text("seeds: [0]\ngrid:\n  distill.margin: [1, 2]\n")
    own = ["sweep", "--sweep", "mine.yaml", "--env", "umaze_goal", "--distill.steps", "0"]
    code, said = cluster.run(*submit(tmp_path / "store", *own))
    assert code == 2
    assert "error: distill.steps is 0" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RAY_AUTH_TOKEN": "8" * 64}, "does not take this token"),
        ({"RAY_ADDRESS": "http://127.0.0.1:1"}, "No job server answers at RAY_ADDRESS=http://127.0.0.1:1"),
        ({"RAY_ADDRESS": "127.0.0.1:6379"}, "jobs go to the dashboard of a cluster"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(cluster, changes, words):
    code, said = cluster.run("status", **changes)
    assert code == 2
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_job_that_is_not_there_is_one_sentence(cluster):
    for command in ("logs", "stop"):
        code, said = cluster.run(command, "raysubmit_nowhere")
        assert code == 2
        assert "raysubmit_nowhere" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit"], "Say what to submit"),
        (["submit", "--python", "py", "fly", "--env", "x"], "There is no fly to submit; choose one of run, sweep"),
        (["dashboard"], "RAY_ADDRESS is not set"),
        (["submit", "run", "--env", "umaze_goal"], "--store runs/store would be lost"),
        (["submit", "fit", "--data", "x", "--out", "y", "--store", "/z"], "--out y holds the dataset"),
        (["submit", "run", "--env", "umaze"], "umaze_goal"),
        (["fetch", "--store", "nothing"], "has no report"),
    ],
)
def test_what_would_be_lost_or_cannot_be_meant_is_refused_before_it_travels(arguments, words, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def stranger(monkeypatch) -> Iterator[list[str]]:
    """A server at RAY_ADDRESS that is no cluster's and gives these answers to every question, the last one for ever."""
    answers = ["[]"]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((answers.pop(0) if len(answers) > 1 else answers[0]).encode())

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        yield answers
        server.shutdown()
        thread.join()


RUN = ["run", "--env", "umaze_goal", "--preset", "smoke", "--store", "/tmp/never-made"]
VERSION = json.dumps({"ray_version": "2.50.0", "version": "4"})


@pytest.mark.parametrize(
    "said", [["[]"], ["{}"], ["null"], [VERSION, VERSION, "[1]"], [VERSION, VERSION, '[{"a": 1}]']]
)
@pytest.mark.parametrize("arguments", [["submit", *RUN], ["status"], ["logs", "a"], ["stop", "a"]])
def test_a_server_that_is_no_cluster_is_one_sentence(stranger, said, arguments, capsys):
    stranger[:] = said
    assert main(arguments) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"error: What answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']} is no job server")
    assert found.count("\n") == 1


def test_reports_in_a_store_are_fetched_by_name(tmp_path, capsys):
    store = Store(tmp_path / "store")
    for name in ("a", "b"):
        with store.create("report", name, {}) as made:
            (made.path / "report.html").write_text(name)
    options = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "here")]
    assert main(["fetch", "c", *options]) == 2
    assert "has no report c; it has a, b." in capsys.readouterr().err
    assert main(["fetch", "b", *options]) == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["b"]
    assert main(["fetch", *options]) == 0
    assert (tmp_path / "here" / "a" / "report.html").read_text() == "a"
