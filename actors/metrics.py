"""What a process is doing, as metrics that every Ray node exports for Prometheus: `ray_mbml_*`.

    mbml_done, mbml_total, mbml_rate, mbml_seconds_left   of the running job, in its own unit, which is a label
    mbml_value                                            its losses and returns, by the label `metric`

Labels: environment, stage, job (its name, with tasks, method and seed).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Gauge

from actors.stage import Job

_OF_JOB = ("environment", "stage", "job", "unit")
GAUGES = {
    "mbml_done": ("How much of its work the job has done.", _OF_JOB),
    "mbml_total": ("How much work the job is.", _OF_JOB),
    "mbml_rate": ("Work of the last minute or so, per second.", _OF_JOB),
    "mbml_seconds_left": ("At that rate.", _OF_JOB),
    "mbml_value": ("A loss, return or share of the job, by `metric`.", (*_OF_JOB[:3], "metric")),
}


@cache
def _gauge(name: str) -> Gauge:
    description, labels = GAUGES[name]
    return Gauge(name, description, labels)


def export(job: Job, done: float, total: float, unit: str, rate: float, values: Mapping[str, Any]) -> None:
    """Set the gauges of a job; nothing where this process is not one of Ray's."""
    if not ray.is_initialized():
        return
    labels = {"environment": getattr(job.spec, "env", ""), "stage": job.stage.name, "job": job.name}
    of_job = {"done": done, "total": total, "rate": rate}
    of_job |= {"seconds_left": (total - done) / rate} if rate > 0 else {}
    for name, value in of_job.items():
        _gauge(f"mbml_{name}").set(value, {**labels, "unit": unit})
    for name, value in values.items():
        _gauge("mbml_value").set(float(value), {**labels, "metric": name})
