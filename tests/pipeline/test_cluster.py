"""Joining a cluster, each time from a process of its own: Ray reads how to authenticate when it is imported."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from actors.store import Store
from pipeline import cluster
from pipeline.cluster import ClusterError, connect
from pipeline.config import ConfigError
from pipeline.needs import needs_of
from pipeline.scheduler import execute
from tests.pipeline.workers import job

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_FROM_OUTSIDE = "examples.pendulum_gravity:pendulum_gravity"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999999", "nonsense"])
def test_no_cluster_at_the_address_is_one_sentence(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address}"), connect():
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_for_something_else_says_for_what(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS is .*; runs take host:port .*make submit"), connect():
        pass


def test_a_port_that_is_open_but_not_rays_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ClusterError, match="No Ray cluster answers"), connect():
            pass


def test_a_ray_that_does_not_start_is_one_sentence(tmp_path):
    folder = tmp_path / ("long" * 20)  # more than the name of a socket may have
    folder.mkdir()
    start = f"from pipeline import cluster\ntry: cluster._start(1, False, {str(folder)!r})\n"
    start += "except cluster.ClusterError as error: print(error)"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    found = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, timeout=120)
    assert found.stdout.startswith("Ray did not start (")
    assert len(found.stdout.splitlines()) == 1


def test_the_wait_for_rays_server_hears_signals_and_ends(tmp_path):
    name = ("0" * 56, "gcs_server_port")
    with pytest.raises(RuntimeError, match="Timed out"):
        cluster._in_turns(str(tmp_path), *name, timeout_ms=300)
    program = "import sys; from pipeline.cluster import _in_turns; print('waits', flush=True); "
    program += f"_in_turns({str(tmp_path)!r}, *{name}, timeout_ms=60_000)"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    (tmp_path / f"gcs_server_port_{name[0]}").write_text("12345")
    assert cluster._in_turns(str(tmp_path), *name, timeout_ms=300) == 12345


def test_ray_uses_the_processors_that_it_may_and_a_private_short_folder_that_is_gone_afterwards(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    look = """
import os, pathlib, stat, subprocess
from pipeline.cluster import connect
own = subprocess.Popen(["sleep", "300"])
before = set(pathlib.Path("/tmp").glob("mbml-*"))
os.sched_setaffinity(0, {0})
with connect() as where:
    print(where)
    (made,) = set(pathlib.Path("/tmp").glob("mbml-*")) - before
    print(stat.filemode(made.stat().st_mode), any(made.glob("*/session_*")))
print(made.exists(), own.poll())
own.kill()
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"TMPDIR": str(folder)}
    found = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, timeout=240)
    said = ["Ray inside this process, 1 CPUs", "drwx------ True", "False None"]
    assert found.stdout.splitlines() == said, found.stderr
    assert not list(folder.iterdir())


def test_nobody_gets_in_without_the_token_which_no_log_and_no_command_line_holds():
    look = """
import os, pathlib, re, urllib.error, urllib.request
import psutil
from pipeline.cluster import connect

def status(**headers):
    asked = urllib.request.Request(f"{address}/nodes?view=summary", headers=headers)
    try:
        return urllib.request.urlopen(asked, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code

with connect(1, dashboard=True) as where:
    address, token = re.search(r"(http://127.0.0.1:\\d+), token (\\w+)", where).groups()
    print(status(), status(Authorization="Bearer wrong"), status(Authorization=f"Bearer {token}"))
    files = [path for path in pathlib.Path(os.environ["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    print(len(files) > 3, [str(path) for path in files if token.encode() in path.read_bytes()])
    lines = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    print([line for line in lines if token in line])
"""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:  # short, and no other test's
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["RAY_TMPDIR"] = folder
        command = [sys.executable, "-c", look]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.stdout.splitlines() == ["401 403 200", "True []", "[]"], found.stderr


@contextmanager
def machines(*cpus: int) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """A cluster of machines, as a process, and the environment of a program that joins it."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, str(_HERE / "small_cluster.py"), *map(str, cpus)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:1] == ["address"]
        try:
            yield process, environment | {"RAY_ADDRESS": words[1]}
        finally:
            process.communicate(timeout=60)


def test_a_cluster_gets_the_source_runs_jobs_where_they_fit_and_the_trials_of_a_sweep(tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("methods: [neither, contextual_bcq]\nseeds: [0]\nset:\n  distill_cpus: 2\n")
    with machines(1, 2) as (_, environment):
        run = subprocess.run(
            [sys.executable, str(_HERE / "cluster_run.py"), str(tmp_path / "store"), str(sweep), _FROM_OUTSIDE],
            cwd=tmp_path,  # so that the workers find the source only if it was shipped
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 nodes, 3 CPUs" in run.stdout
    assert "9 CPUs; the largest machine offers 2 CPUs" in run.stdout
    assert "2/2 trials, 100%" in run.stdout
    assert len((tmp_path / "store-sweep" / "results.csv").read_text().splitlines()) == 5
    assert "done ['huge', 'large', 'small-0', 'small-1']" in run.stdout


def test_a_cluster_without_a_processor_is_waited_for(tmp_path):
    with (
        machines(0) as (cluster_process, environment),
        subprocess.Popen(
            [sys.executable, str(_HERE / "cluster_run.py"), str(tmp_path / "store")],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as run,
    ):
        assert run.stdout is not None
        assert cluster_process.stdin is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if line.startswith("waiting"):
                break
        assert "4 jobs wait for a machine with 1 CPUs and 0 GPUs" in said[-1]
        assert "0 CPUs" in said[-1]
        cluster_process.stdin.write("9\n")
        cluster_process.stdin.flush()
        rest = run.stdout.read()
        assert run.wait(60) == 0
    assert "done ['huge', 'large', 'small-0', 'small-1']" in rest


def test_another_version_of_ray_on_the_cluster_is_one_sentence():
    join = "import ray; ray.__version__ = '9.9.9'\nfrom pipeline import cluster\ntry: cluster.connect().__enter__()\n"
    join += "except cluster.ClusterError as error: print(error)"
    with machines(1) as (_, environment):
        done = subprocess.run([sys.executable, "-c", join], cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert "cannot be joined: Version mismatch" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("poll", [1, 600])
def test_a_cluster_that_vanishes_ends_the_run_with_a_sentence_and_what_is_finished_stays(poll, tmp_path):
    code = "import sys, tests\nfrom pipeline.cluster import connect\nfrom pipeline.scheduler import execute\n"
    code += "from tests.pipeline.workers import job\n"
    code += (
        f"with connect(modules=[tests]):\n execute([job('a'), job('b', sleep=300)], sys.argv[1], poll_seconds={poll})\n"
    )
    with (
        machines(1) as (cluster_process, environment),
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=_ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as run,
    ):
        assert run.stdout is not None
        for line in run.stdout:
            if "started  b" in line:
                break
        for process in psutil.Process(cluster_process.pid).children(recursive=True):
            process.kill()
        _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert re.search(r"ClusterError: The cluster at \S+ is gone: finished jobs and checkpoints are kept", said)
    assert Store(tmp_path).complete(*job("a").ref)


_PLACED = """
import sys, tests
from pipeline.cluster import connect
from pipeline.needs import needs_of
from pipeline.scheduler import execute
from tests.pipeline.workers import job, Count
from actors.stage import Job
with connect(modules=[tests]):
    jobs = [*(job(f"b{i}", sleep=1.0) for i in range(2)), *(Job(Count(f"k{i}", 150, 0.1), f"any{i}") for i in range(2))]
    needs = needs_of(["add:label.zone=b", "add:resource.disk=1", "add:memory=0.1"])
    outcome = execute(jobs, sys.argv[1], needs=needs, log=lambda line: None)
    for span in outcome.timeline:
        print(span.job, span.machine.split()[-1], span.started, span.started + span.seconds)
"""


def test_jobs_go_where_what_they_need_is_and_others_run_at_the_same_time_elsewhere(tmp_path):
    command = [sys.executable, "-c", _PLACED, str(tmp_path)]
    with machines(1, 1) as (_, environment):
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spans = [line.split() for line in done.stdout.splitlines()]
    assert len(spans) == 4
    with_label = {machine for name, machine, *_ in spans if name.startswith("b")}
    assert len(with_label) == 1
    assert len({machine for _, machine, *_ in spans}) == 2
    assert any(
        float(one[2]) < float(other[3]) and float(other[2]) < float(one[3]) and one[1] != other[1]
        for one in spans
        for other in spans
    )


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("teech:memory=1", "'teech' is no stage; there are "),
        ("teach", "give STAGE:memory=GIB"),
        ("teach:memory=much", "'much' is no amount above 0"),
        ("teach:memory=-1", "'-1' is no amount above 0"),
        ("teach:resource.disk=nan", "'nan' is no amount above 0"),
        ("teach:label.zone=", "give STAGE:memory=GIB"),
        ("teach:disk=1", "give STAGE:memory=GIB"),
    ],
)
def test_needs_that_cannot_be_meant_are_one_sentence(word, fault):
    with pytest.raises(ConfigError, match=re.escape(fault)):
        needs_of([word])


def test_an_embedded_ray_that_lacks_what_is_needed_says_so_at_once(embedded_ray, tmp_path):
    for words, said in (("add:label.zone=b", "0 GPUs and zone=b, but"), ("add:memory=99999", "99999 GiB, but")):
        with pytest.raises(ClusterError, match=re.escape(said)):
            execute([job("one")], str(tmp_path), needs=needs_of([words]), log=lambda line: None)
    assert execute([job("one")], str(tmp_path), needs=needs_of(["add:memory=0.1"]), log=lambda line: None).done


_ENDING = """
from pipeline.cluster import connect
try:
    with connect(1):
        print("there", flush=True)
    print("went on", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def _over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_sigterm_while_ray_is_shut_down_does_not_cut_that_short_and_is_not_lost():
    """Ray sets SIGTERM back to what it does without a handler, and then ends its processes, for a second."""
    command = [sys.executable, "-c", _ENDING]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        started = psutil.Process(process.pid).children(recursive=True)
        while not any(map(_over, started)):
            time.sleep(0.01)
        process.terminate()
        assert process.stdout.read() == "stopped\n"
        assert process.wait(timeout=60) == 0
    assert not psutil.wait_procs(started, timeout=10)[1]
