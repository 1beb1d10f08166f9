"""Collection on machines of one CPU each, all of them on this one: how much of their time a job works."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.protocol import Measure


def collection(raylets: int, tasks: int, steps: int) -> Measure:
    """Percent of the time of so many raylets in which a job of collection worked, their start not included.

    `umaze_goal` with the laptop's networks, a job for each of the tasks.
    """
    # Ray looks for the token once, when it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from mbml.settings import changed
    from pipeline.cluster import connect
    from pipeline.plan import plan
    from pipeline.presets import preset
    from pipeline.scheduler import execute

    sizes = {"collect.steps": steps, "collect.tasks_per_actor": 1, "train_tasks": tasks}
    config = changed(preset("umaze_goal", "laptop"), sizes)
    jobs = [job for job in plan(config).jobs.values() if job.ref.stage == "collect"]

    def measure(seconds: float) -> dict[str, Any]:
        with _machines(raylets), tempfile.TemporaryDirectory() as store, connect():
            outcome = execute(jobs, store, log=lambda line: None)
        if len(outcome.done) != tasks:
            raise RuntimeError(f"{tasks - len(outcome.done)} of {tasks} jobs did not end well.")
        (cost,) = outcome.cost
        share = cost.work_seconds / (outcome.wall_seconds * raylets)
        return {"value": 100 * share, "wall_seconds": outcome.wall_seconds, "work_seconds": cost.work_seconds}

    return measure


@contextmanager
def _machines(number: int) -> Iterator[None]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(number - 1):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = str(cluster.address)
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()
