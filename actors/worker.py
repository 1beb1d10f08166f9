"""What every actor has in common: fetch the inputs, do the work, publish the artefact, say how far it is."""

import resource
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from actors.job import Job
from actors.store import Output, Store

_RATE_MARKS = 60  # at least a second apart, so the rate is that of the last minute or so


class DeviceError(RuntimeError):
    """A job whose device is not the actor's; its artefact's key would not tell the truth."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    name: str
    done: float
    total: float
    unit: str
    rate: float | None
    """Units per second in this process over the last minute or so; None until it can be told."""
    seconds_left: float | None
    metrics: dict[str, float] = field(default_factory=dict)


class Worker(ABC):
    """Runs jobs of one kind, one at a time; `actors.host` does so in Ray actors.

    A subclass says what the work is. `run` may be called again with the same job after a crash: the work then
    finds in `out.path` what the earlier try left there and continues from its own checkpoint.
    """

    def __init__(self, store_url: str, num_cpus: float = 1.0, num_gpus: float = 0.0):
        """Sets this process's torch threads from the CPUs that it was given (at least one).

        `device` is the GPU where it was given one, or a share, that torch can use; otherwise the CPU.
        """
        self.store = Store(store_url)
        self.device = "cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu"
        self.threads = max(1, int(num_cpus))
        torch.set_num_threads(self.threads)
        with suppress(RuntimeError):  # can be set once only, before torch's first parallel work
            torch.set_num_interop_threads(1)
        self._job: Job | None = None
        self._latest: tuple[float, float, str, dict[str, Any]] | None = None
        self._marks: deque[tuple[float, float]] = deque(maxlen=_RATE_MARKS)

    @abstractmethod
    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Make the artefact's files in `out.path` and return metrics (JSON values).

        Checkpoint into `out.path` (then `out.checkpoint()`) when it takes longer than a minute, and call
        `self.report` now and then.

        Args:
            job: what to make.
            out: where; `out.path` holds what an earlier try left.
            inputs: local directories of the job's inputs, in the order in which the job names them.
        """

    def run(self, job: Job, at_hand: dict[str, list[Path]] | None = None) -> dict[str, Any]:
        """Make the job's artefact unless it is there.

        Inputs that are `at_hand` are read from those directories, complete or not, and not from the store.

        Returns the work's metrics with `seconds` (of this try only) and `peak_memory_mb` (MiB).
        Raises DeviceError for a job of another device, and whatever the work raises; its partial files are kept.
        """
        if self.store.complete(*job.artefact):
            return self.store.describe(*job.artefact).get("metrics", {})
        if job.payload.get("device", "cpu") != self.device:
            raise DeviceError(
                f"{job.name} is to run on {job.payload.get('device', 'cpu')}, but this actor has {self.device} "
                f"(torch {torch.__version__}); learner_gpus says how much of a GPU each learner gets."
            )
        self._job, self._latest = job, None
        self._marks.clear()
        started = time.monotonic()
        _forget_peak_memory()
        try:
            with self.store.create(job.stage, job.key, job.description()) as out:
                inputs = dict(at_hand or {})
                wanted = {name: refs for name, refs in job.inputs.items() if name not in inputs}
                inputs |= {name: [self.store.fetch(*ref) for ref in refs] for name, refs in wanted.items()}
                metrics = self.work(job, out, inputs)
                seconds = round(time.monotonic() - started, 3)
                metrics = {"seconds": seconds, "peak_memory_mb": round(_peak_memory_mb(), 1), **metrics}
                out.manifest["metrics"] = metrics
        finally:
            self._job = None
        return metrics

    def report(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        """Say how far the work is; cheap enough for every iteration.

        Call it once before the first iteration of this process, with what a checkpoint had already done, so
        that a resumed job shows the rate of this process. Metrics are numbers or tensors of one element that
        nobody writes to; they are read only when somebody asks for the progress.
        """
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, done))
        self._latest = (done, total, unit, metrics)

    def progress(self) -> Progress | None:
        """How far the running job is, or None; Ray calls this from another thread while `run` is busy."""
        job, latest = self._job, self._latest
        if job is None or latest is None:
            return None
        done, total, unit, metrics = latest
        rate = None
        if self._marks:
            since, done_then = self._marks[0]
            if done > done_then and (elapsed := time.monotonic() - since) > 0:
                rate = (done - done_then) / elapsed
        seconds_left = max(0.0, total - done) / rate if rate else None
        values = {name: float(value) for name, value in metrics.items()}
        return Progress(job.name, done, total, unit, rate, seconds_left, values)

    def __repr__(self) -> str:
        return type(self).__name__ if self._job is None else f"{type(self).__name__}({self._job.name})"


def _forget_peak_memory() -> None:
    """Let the kernel start the peak anew, because one process works on many jobs (Linux only)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Largest resident size in MiB since `_forget_peak_memory`, memory-mapped data included."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
