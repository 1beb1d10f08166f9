"""Whole runs on clusters whose machines come and go, with the bits of an embedded run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pipeline.growing_cluster import ROOT, growing_cluster, heard, machines_left, processes, sums, without_ray
from tests.pipeline.test_cluster import machines


def command(folder: Path) -> list[str]:
    sizes = ["--preset", "smoke", "--train-tasks", "3", "--test-tasks", "1", "--methods", "full"]
    sizes += ["--collect.tasks-per-actor", "1", "--collect.steps", "3000"]  # long enough for the second machine to come
    place = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--wait-for-nodes", "300"]
    return [sys.executable, "-m", "pipeline", "run", "--env", "umaze_goal", *sizes, *place]


def is_machine(process: psutil.Process) -> bool:
    """Whether it is the raylet of a machine other than the head."""
    return process.name() == "raylet" and "--head" not in process.cmdline()


pytestmark = pytest.mark.skipif(
    "MBML_CLUSTERS" not in os.environ, reason="takes minutes and a quiet machine; MBML_CLUSTERS=1 runs it"
)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What a run leaves that nothing happens to."""
    folder = tmp_path_factory.mktemp("embedded")
    subprocess.run(command(folder), cwd=ROOT, env=without_ray(), check=True, capture_output=True, timeout=600)
    found = sums(folder / "store")
    assert len(found) > 10
    return found


def test_a_run_on_a_cluster_that_starts_empty_has_the_bits_of_an_embedded_one(embedded, tmp_path):
    ours = tmp_path / "growing"
    ours.mkdir()
    with growing_cluster(tmp_path, 3) as environment:

        def listen(line: str) -> None:
            if "started  collect task 1" in line:  # on the second machine, or on the first after task 0
                raylet, *_ = filter(is_machine, processes("RAY_AUTH_TOKEN", environment["RAY_AUTH_TOKEN"]))
                for process in [raylet, *raylet.children(recursive=True)]:
                    process.kill()

        said = heard(command(ours), environment, listen)
        left = machines_left(environment, 180)
    assert "1 nodes, 0 CPUs" in said
    assert "lost     collect task" in said
    machines = {span["machine"] for span in json.loads((ours / "out" / "run.json").read_text())["timeline"]}
    assert len(machines) >= 2
    assert left == 0
    assert sums(ours / "store") == embedded


def test_a_run_that_loses_a_machine_and_has_another_taken_away_has_the_same_bits(embedded, tmp_path):
    after = {"started  collect task 2": "remove", "started  teach": "drain 5"}
    with machines(1, 1, 1) as (cluster, environment):

        def listen(line: str) -> None:
            for event in [event for event in after if event in line]:
                print(after.pop(event), file=cluster.stdin, flush=True)

        said = heard(command(tmp_path), dict(environment), listen)
    assert not after
    assert "3 nodes, 3 CPUs" in said
    assert "lost  " in said
    assert sums(tmp_path / "store") == embedded
