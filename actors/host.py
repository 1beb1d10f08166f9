"""The process that makes artefacts of any stage, one after the other: a plain class, and a Ray actor made of it."""

import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray._raylet import getproctitle, setproctitle  # pyright: ignore[reportAttributeAccessIssue]

import actors.stages  # noqa: F401  (every stage registers itself)
from actors.metrics import export
from actors.stage import CHECKPOINT_SECONDS, Job, Ref, Run
from actors.store import Store
from mbml.allocation import keep_freed_memory

_NOTHING: Mapping[Ref, Path] = {}
_EXPORT_SECONDS = 5.0
_TITLE_SECONDS = 1.0  # Ray takes the process's title back whenever progress is asked for
_RATE_MARKS = 60  # at least a second apart, so the rate is that of the last minute or so


class DeviceError(RuntimeError):
    """A job whose device is not the actor's; its artefact's key would not tell the truth."""


class Host:
    """Makes one artefact at a time. One process serves all stages, because importing torch takes longer than many a
    job. A job that is run again after a crash goes on from its checkpoint."""

    def __init__(
        self,
        store_url: str,
        num_gpus: float = 0.0,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        name: str = "worker",
        greeted_within: float = math.inf,
    ) -> None:
        """`device` is the GPU where it was given one, or a share, that torch can use; otherwise the CPU.

        Its process ends when nobody calls it within `greeted_within` seconds, or later, where it has no job, for ten
        times as long: Ray may forget an actor that is killed while it starts, or while its process or its network
        stands still, and then keeps its CPUs from all others for ever.
        """
        keep_freed_memory()
        self.store, self.checkpoint_seconds, self.name = Store(store_url), checkpoint_seconds, name
        self.device = "cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu"
        self._called = threading.Event()
        with suppress(RuntimeError):  # can be set once only, before torch's first parallel work
            torch.set_num_interop_threads(1)
        self._job: Job | None = None
        self._waits = False
        """For another run that makes the same artefact."""
        self._latest: tuple[float, float, str, dict[str, Any]] | None = None
        self._exported = self._titled = -math.inf
        """When metrics were exported last, and the process's title was set."""
        self._marks: deque[tuple[float, float]] = deque(maxlen=_RATE_MARKS)
        if greeted_within < math.inf:
            threading.Thread(target=self._until_unused, args=(greeted_within, 10 * greeted_within), daemon=True).start()

    def run(
        self, job: Job, watch: Callable[[Path], None] = lambda out: None, at_hand: Mapping[Ref, Path] = _NOTHING
    ) -> dict[str, Any]:
        """Make the job's artefact unless it is there.

        Args:
            job: what to make.
            watch: hears of the unfinished artefact's folder whenever its process advanced.
            at_hand: inputs to read from a folder, finished or not, rather than from the store.

        Returns the stage's metrics with `seconds` (of this try only) and `peak_memory_mb` (MiB); with `reused` as well
        where the artefact was there, or another run made it meanwhile.
        Raises DeviceError for a job of another device, and whatever the stage raises; its partial files are kept.
        """
        self._called.set()
        self._job, self._latest, title, threads = job, None, getproctitle(), torch.get_num_threads()
        setproctitle(f"ray::{job.name}")
        try:
            with self.store.claim(*job.ref, self._wait):
                if self.store.complete(*job.ref):
                    return self.store.describe(*job.ref).get("metrics", {}) | {"reused": True}
                if job.device != self.device:
                    has = f"but this actor has {self.device} (torch {torch.__version__})"
                    advice = "learner_gpus says how much of a GPU each learner gets"
                    raise DeviceError(f"{job.name} is to run on {job.device}, {has}; {advice}.")
                self._waits = False
                return self._make(job, watch, at_hand)
        finally:
            self._job, self._waits = None, False
            self._called.set()
            setproctitle(title)
            torch.set_num_threads(threads)  # a trial plays snapshots while it learns

    def _until_unused(self, patience: float, later: float) -> None:
        while self._called.wait(patience) or self._job is not None:
            self._called.clear()
            patience = later
        os._exit(0)

    def _wait(self) -> None:
        self._waits = True

    def _make(self, job: Job, watch: Callable[[Path], None], at_hand: Mapping[Ref, Path]) -> dict[str, Any]:
        self._marks.clear()
        started = time.monotonic()
        # What was asked for, though this machine had less: sums are added up in another order with other threads.
        torch.set_num_threads(max(1, int(job.num_cpus)))
        # One process works on many jobs: let the kernel start the peak of memory anew (Linux only).
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        with self.store.create(*job.ref, job.description()) as out:
            inputs = {ref: at_hand[ref] if ref in at_hand else self.store.fetch(*ref) for ref in job.inputs}
            run = Run(out.path, inputs, self.device, out.checkpoint, self.report, watch, self.checkpoint_seconds)
            try:
                metrics = job.stage.make(job.spec, run)
            except SystemExit as error:  # of a user's code; Ray's own, which end this process, have a message
                if hasattr(error, "ray_terminate_msg"):
                    raise
                raise RuntimeError(f"its code called exit({error.code!r}), which ends no job") from error
            run.discard()
            # In MiB, of which macOS alone counts bytes; memory-mapped data included.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
            cost = {"seconds": round(time.monotonic() - started, 3), "peak_memory_mb": round(peak, 1)}
            out.manifest["metrics"] = metrics = cost | metrics
        return metrics

    def report(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        """Say how far the work is; cheap enough for every iteration.

        The first call says what a checkpoint had already done, so that a resumed job shows the rate of this process.
        Metrics are numbers or tensors of one element that nobody writes to; they are read only when somebody asks for
        the progress.
        """
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, done))
        self._latest = (done, total, unit, metrics)
        if self._job is None or now - self._titled < _TITLE_SECONDS:
            return
        self._titled, rate = now, self._rate(now, done)
        left = f", {duration((total - done) / rate)} left" if rate > 0 else ""
        setproctitle(f"ray::{self._job.name} {100 * done / total:.0f}%{left}")
        if now - self._exported >= _EXPORT_SECONDS:
            self._exported = now
            export(self._job, done, total, unit, rate, metrics)

    def _rate(self, now: float, done: float) -> float:
        """Work per second since the oldest mark."""
        since, done_then = self._marks[0]
        return (done - done_then) / (now - since) if now > since else 0.0

    def progress(self) -> str | None:
        """How far the running job is, in a line: done, per cent, rate over the last minute or so, time left, metrics.

        None while there is nothing to say. Ray calls this from another thread while `run` is busy.
        """
        job, latest = self._job, self._latest
        if job is not None and self._waits:
            return f"waiting  {job.name}: another run is making it"
        if job is None or latest is None:
            return None
        done, total, unit, metrics = latest
        parts = [f"{done:g}/{total:g} {unit}", f"{100 * done / total:.0f}%"]
        if (rate := self._rate(time.monotonic(), done)) > 0:
            parts += [f"{rate:.3g} {unit}/s", f"{duration(max(0.0, total - done) / rate)} left"]
        parts += [f"{name}={float(value):.4g}" for name, value in metrics.items()]
        return f"running  {job.name}   " + "  ".join(parts)

    def machine(self) -> str:
        """Where this process runs: the address of its Ray node and the end of the node's id."""
        self._called.set()
        return f"{ray.util.get_node_ip_address()} {ray.get_runtime_context().get_node_id()[-6:]}"

    def __repr__(self) -> str:
        """Its name on Ray's dashboard, which asks once, when the actor starts."""
        return self.name


_OPTIONS: dict[str, Any] = {"concurrency_groups": {"progress": 1}}
_REMOTE: Any = ray.remote(**_OPTIONS)(Host)  # one class for all, because Ray sends each to every machine


def remote(
    store_url: str,
    num_cpus: float,
    num_gpus: float = 0.0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    name: str = "worker",
    greeted_within: float = 60.0,
    **options: Any,
) -> Any:
    """Start a host as a Ray actor; it dies with the driver.

    Ask for the progress of a busy one with `handle.progress.options(concurrency_group="progress").remote()`.

    Args:
        store_url: where inputs and artefacts live, the same for every node of the cluster.
        num_cpus: CPUs to reserve.
        num_gpus: GPUs to reserve; fractions share one.
        checkpoint_seconds: how much work a job may lose with its process.
        name: what Ray's dashboard calls it; need not be unique.
        greeted_within: seconds after which it ends where nobody has called it; later, without a job, ten times that.
        options: Ray's, such as memory, resources, label_selector.
    """
    given = (store_url, num_gpus, checkpoint_seconds, name, greeted_within)
    return _REMOTE.options(num_cpus=num_cpus, num_gpus=num_gpus, **options).remote(*given)


def duration(seconds: float) -> str:
    """Such as 4.2s, 1m08s, 2h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
