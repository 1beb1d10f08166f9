"""The same commands embedded, on three machines, as a job, and on a cluster that starts empty: the same bits."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.growing_cluster import ROOT, growing_cluster, job_server, sums, without_ray
from tests.pipeline.test_cluster import machines

pytestmark = pytest.mark.skipif(
    "MBML_CLUSTERS" not in os.environ, reason="takes minutes and a quiet machine; MBML_CLUSTERS=1 runs it"
)


def make(store: Path, environment: dict[str, str], *words: str) -> dict[str, dict[str, str]]:
    """What a command of the README leaves in an empty store."""
    if "submit" not in words:
        words += (f"ARGS=--out {store}-out",)
    # The interpreter of jobs is the one that comes first.
    environment = environment | {"PATH": f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"}
    command = [shutil.which("make") or "make", "-C", str(ROOT), *words, f"STORE={store}"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return sums(store)


def embedded(store: Path, *words: str) -> dict[str, dict[str, str]]:
    return make(store, without_ray(), *words)


RUN = ("ENV=walker_param", "PRESET=smoke")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The artefacts of an embedded run."""
    found = embedded(tmp_path_factory.mktemp("embedded") / "store", "pipeline", *RUN)
    assert len(found) > 10
    return found


def test_on_three_machines(alone, tmp_path):
    with machines(1, 1, 1) as (_, environment):
        assert make(tmp_path / "store", dict(environment), "pipeline", *RUN) == alone


def test_on_a_cluster_that_starts_empty(alone, tmp_path):
    with growing_cluster(tmp_path, 3) as environment:
        assert make(tmp_path / "store", environment, "pipeline", *RUN) == alone


def test_as_a_job_and_a_sweep_as_a_job(alone, tmp_path, monkeypatch):
    sweep = ("SWEEP=triplet_margin", *RUN)
    monkeypatch.setenv("PATH", f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}")  # of the head, whose jobs get it
    with job_server(tmp_path) as environment:
        assert make(tmp_path / "store", environment, "submit", *RUN) == alone
        swept = make(tmp_path / "swept", environment, "submit", "CMD=sweep", *sweep)
    assert swept == embedded(tmp_path / "embedded", "sweep", *sweep)
    assert len(swept) > len(alone)
