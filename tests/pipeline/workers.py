"""Stages that do next to nothing, for the tests of host and scheduler; in a module that actors can import."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.stage import Job, Ref, Run, stage
from mbml.serialise import replacing


@dataclass(frozen=True)
class Add:
    """A number plus the sum of the inputs; misbehaves when it says so."""

    label: str
    number: int = 1
    inputs: tuple[Ref, ...] = ()
    refuse: str = ""
    die: str = ""
    sleep: float = 0.0
    fill_mb: int = 0
    wait_for: str = ""
    """A file that must be there before the work ends."""
    metric: float = 0.0
    settings: Any = None


@stage(version=1)
def add(spec: Add, run: Run) -> dict[str, Any]:
    """Leaves `total`."""
    mark = run.out / "tried"
    tries = len(mark.read_text()) if mark.exists() else 0
    mark.write_text("x" * (tries + 1))
    if spec.refuse:
        raise ValueError(spec.refuse)
    if spec.die == "always" or (spec.die == "once" and not tries):
        os._exit(1)
    if spec.die == "politely":
        raise SystemExit(3)
    while spec.wait_for and not os.path.exists(spec.wait_for):
        time.sleep(0.02)
    if spec.fill_mb:
        np.ones(spec.fill_mb * 2**20, dtype=np.uint8)
    started = time.time()
    time.sleep(spec.sleep)
    total = spec.number + sum(int((folder / "total").read_text()) for folder in run.paths(spec.inputs))
    (run.out / "total").write_text(str(total))
    mark.unlink()
    return {
        "total": total,
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "started": started,
        "ended": time.time(),
        "tries": tries + 1,
        "metric": spec.metric,
    }


@dataclass
class Counter:
    """A process that counts, and keeps its count, and where it went on, in files as well."""

    total: int
    seconds: float
    file: Any
    die_every: int = 0
    done: int = 0
    unit: str = "steps"
    started: int = 0

    def advance(self) -> dict[str, Any]:
        time.sleep(self.seconds)
        if self.die_every and self.done == self.started + self.die_every:
            os._exit(1)
        self.done += 1
        with replacing(self.file) as path:  # it may be killed in here
            path.write_text(str(self.done))
        return {"value": torch.tensor(float(self.done))}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = self.started = state["done"]
        self.file.with_name("resumed").write_text(str(self.done))


@dataclass(frozen=True)
class Count:
    """Counts to `total`."""

    label: str
    total: int
    seconds: float = 0.05
    device: str = "cpu"
    die_every: int = 0
    """Steps after which its process dies, each time anew."""


@stage(version=1)
def count(spec: Count, run: Run) -> dict[str, Any]:
    """Leaves `count`."""
    run.checkpoint_seconds = 0.0
    counter = Counter(spec.total, spec.seconds, run.out / "count", spec.die_every)
    run.train(counter)
    return {"counted": counter.done}


def job(label: str, *needs: Job, num_cpus: float = 1.0, num_gpus: float = 0.0, **changes: Any) -> Job:
    """An `Add` called `label` that needs the artefacts of other jobs."""
    spec = Add(label, inputs=tuple(need.ref for need in needs), **changes)
    return Job(spec, label, num_cpus, num_gpus)
