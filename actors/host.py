"""The Ray actor: a process that runs jobs of any kind, one after the other."""

from __future__ import annotations

from typing import Any

import ray

from actors.job import Job
from actors.worker import Progress, Worker


class Host:
    """Runs each job with a new worker of its kind. A plain class; `remote` makes a Ray actor of it.

    One process serves all kinds, because importing torch into another takes longer than many a job.
    """

    def __init__(self, store_url: str, num_cpus: float = 1.0, num_gpus: float = 0.0):
        self._given = store_url, num_cpus, num_gpus
        self._worker: Worker | None = None

    def run(self, worker: type[Worker], job: Job) -> dict[str, Any]:
        """Make the job's artefact unless it is there; the metrics of `Worker.run`."""
        self._worker = worker(*self._given)
        try:
            return self._worker.run(job)
        finally:
            self._worker = None  # with all that it holds

    def progress(self) -> Progress | None:
        """How far the running job is, or None; Ray calls this from another thread while `run` is busy."""
        worker = self._worker
        return None if worker is None else worker.progress()


def remote(store_url: str, *, num_cpus: float, num_gpus: float = 0.0, name: str | None = None) -> Any:
    """Start a host; it dies with the driver.

    Ray starts it anew when its process or node is lost and runs the interrupted job again, twice at most, which
    continues from the job's checkpoint. Ask for the progress of a busy host with
    `handle.progress.options(concurrency_group="progress").remote()`.

    Args:
        store_url: where inputs and artefacts live, the same for every node of the cluster.
        num_cpus: CPUs to reserve; also the number of torch threads.
        num_gpus: GPUs to reserve; fractions share one.
        name: shown in the dashboard, unique within the run.
    """
    options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "name": name}
    options |= {"max_restarts": -1, "max_task_retries": 2, "concurrency_groups": {"progress": 1}}
    return ray.remote(**options)(Host).remote(store_url, num_cpus, num_gpus)
