"""The driver's own cost: planning a run, and getting jobs that do nothing through Ray and the store."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from actors.host import Host
from actors.stage import Job, Ref, Run, stage
from benchmarks.peers.protocol import Measure
from pipeline.cluster import connect
from pipeline.config import RunConfig
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.scheduler import execute


@dataclass(frozen=True)
class Empty:
    """In the place of another specification."""

    name: str
    inputs: tuple[Ref, ...]


@stage(version=1)
def empty(spec: Empty, run: Run) -> dict[str, Any]:
    """Leaves nothing."""
    return {}


def configuration(tasks: int) -> RunConfig:
    """The full model on so many training tasks, each collected, learned and modelled by a job of its own.

    No distribution has so many tasks: good for planning and for jobs that never look at theirs.
    """
    config = preset("umaze_goal", "laptop")
    stages = {name: replace(getattr(config, name), tasks_per_actor=1) for name in ("collect", "teach", "models")}
    one_method = replace(config, methods=("full",), distill_seeds=(0,), rllib=replace(config.rllib, algorithms=()))
    return replace(one_method, train_tasks=tasks, **stages)


def planning(tasks: int) -> Measure:
    """Milliseconds of planning per job."""
    config = configuration(tasks)

    def measure(seconds: float) -> dict[str, Any]:
        count, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds or not count:
            jobs = len(plan(config).jobs)
            count += 1
        spent /= count
        return {"value": 1000 * spent / jobs, "jobs": jobs, "plan_seconds": spent}

    return measure


def scheduling(tasks: int, cpus: int) -> Measure:
    """Milliseconds per empty job, from the graph to the last artefact, without the wait for the first worker."""
    jobs: dict[Ref, Job] = {}
    for ref, job in plan(configuration(tasks)).jobs.items():
        jobs[ref] = Job(Empty(job.name, tuple(jobs[needed].ref for needed in job.inputs)), job.name)
    made = Job(Empty("made before", ()), "made before")  # the line that says so ends the look at what is there

    def measure(seconds: float) -> dict[str, Any]:
        first: dict[str, float] = {}

        def log(line: str) -> None:
            first.setdefault(line.split()[0], time.monotonic())

        # Ray starts and ends with the round, outside the clock: other competitors must find the processors idle.
        with tempfile.TemporaryDirectory() as store, connect(num_cpus=cpus):
            Host(store).run(made)
            outcome = execute([made, *jobs.values()], store, log=log)
        if len(outcome.done) != len(jobs):
            raise RuntimeError(f"{len(jobs) - len(outcome.done)} of {len(jobs)} empty jobs did not end well.")
        waited = first["finished"] - first["reused"]
        spent = outcome.wall_seconds - waited
        return {
            "value": 1000 * spent / len(jobs),
            "jobs": len(jobs),
            "wall_seconds": outcome.wall_seconds,
            "first_worker_seconds": waited,
        }

    return measure
