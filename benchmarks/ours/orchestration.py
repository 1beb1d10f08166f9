"""How much of a run's wall clock its jobs did not use, from the run's `run.json`.

    share = 1 - sum over jobs (seconds x CPUs of the job) / (wall seconds x CPUs of the machine)

An upper bound of what the orchestration costs: it holds starting the actors, scheduling and storing, and also
CPUs that were idle because no other job was ready. Ray itself starts before the wall clock of a summary does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Measure

WIDE_STAGES = ("distill",)
"""Stages whose jobs take `distill_cpus`; all others take one CPU."""


class OrchestrationError(ValueError):
    """A summary that does not tell what its run cost."""


def unused_share(summary: Mapping[str, Any], cpus: int) -> dict[str, float]:
    """The share in per cent as `value`, with what it is made of.

    Raises OrchestrationError where artefacts were reused, whose work is not in the wall clock.
    """
    if not summary.get("cost") or not summary.get("wall_seconds"):
        raise OrchestrationError("The summary has no cost: it is of a report that was written again, not of a run.")
    reused = [stage["stage"] for stage in summary["cost"] if stage["reused"]]
    if reused:
        raise OrchestrationError(f"The run reused artefacts ({', '.join(reused)}); give a run that made all its own.")
    wide = min(cpus, summary["config"]["distill_cpus"])
    work = sum(s["work_seconds"] * (wide if s["stage"] in WIDE_STAGES else 1) for s in summary["cost"])
    wall = summary["wall_seconds"]
    return {"value": 100 * (1 - work / (wall * cpus)), "wall_seconds": wall, "cpu_seconds": work, "cpus": cpus}


def of_folder(folder: Path, cpus: int) -> dict[str, float]:
    """The share of the run whose report is in `folder`; raises OrchestrationError where there is none."""
    path = folder / "run.json"
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OrchestrationError(f"{path} is not the summary of a run ({error}).") from None
    return unused_share(summary, cpus)


def whole_run(environment: str, preset: str) -> Measure:
    """The same of a run made for it in a store of its own."""

    def measure(seconds: float) -> dict[str, Any]:
        cpus = len(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory() as folder:
            options = ["--env", environment, "--preset", preset, "--num-cpus", str(cpus)]
            places = ["--store", f"{folder}/store", "--out", f"{folder}/out"]
            command = [sys.executable, "-m", "pipeline", "run", *options, *places]
            subprocess.run(command, check=True, stdout=sys.stderr)
            return of_folder(Path(folder, "out"), cpus)

    return measure
