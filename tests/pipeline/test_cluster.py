"""Joining a cluster, each time from a process of its own: Ray reads how to authenticate when it is imported."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cluster import ClusterError, connect

_HERE = Path(__file__).parent


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999999", "nonsense"])
def test_no_cluster_at_the_address_is_one_sentence_within_20_seconds(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address}"), connect():
        pass
    assert time.monotonic() - started < 20


def test_a_port_that_is_open_but_not_rays_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ClusterError, match="No Ray cluster answers"), connect():
            pass


def test_a_cluster_gets_the_source_runs_jobs_where_they_fit_and_the_trials_of_a_sweep(tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("methods: [neither, contextual_bcq]\nseeds: [0]\nset:\n  distill_cpus: 2\n")
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    program = [sys.executable, str(_HERE / "small_cluster.py")]
    with subprocess.Popen(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as machines:
        assert machines.stdout is not None
        words = machines.stdout.readline().split()
        assert words[:1] == ["address"], machines.communicate()[1]
        run = subprocess.run(
            [sys.executable, str(_HERE / "cluster_run.py"), str(tmp_path / "store"), str(sweep)],
            cwd=tmp_path,  # so that the workers find the source only if it was shipped
            env=environment | {"RAY_ADDRESS": words[1]},
            capture_output=True,
            text=True,
            timeout=300,
        )
        machines.communicate(timeout=30)
    assert run.returncode == 0, run.stderr
    assert "2 nodes, 3 CPUs" in run.stdout
    assert "9 CPUs; the largest machine offers 2 CPUs" in run.stdout
    assert "2/2 trials, 100%" in run.stdout
    assert len((tmp_path / "store-sweep" / "results.csv").read_text().splitlines()) == 5
    assert "done ['huge', 'large', 'small-0', 'small-1']" in run.stdout
