"""Run a stage graph over Ray: reuse what stands, spread the rest, keep going when a job fails."""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.host import Progress
from actors.stage import Job, Ref
from actors.store import Store, StoreError
from pipeline.cluster import ClusterError, fit, resources
from pipeline.pool import Actor, Pool, Size

_RETRIES = 2
"""How often a job whose process or machine was lost is tried again, from its checkpoint."""


@dataclass
class StageCost:
    """What a stage cost; a reused artefact counts with the work its manifest tells, but no wall time."""

    stage: str
    jobs: int = 0
    reused: int = 0
    wall_seconds: float = 0.0
    """From the start of the stage's first job in this run to the end of its last."""
    work_seconds: float = 0.0
    """Sum over its jobs."""
    peak_memory_mb: float = 0.0
    """Largest of its jobs."""


@dataclass
class Outcome:
    """What became of every job, by name: done, reused, unneeded, failed or skipped."""

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)
    """No artefact, and none needed: everything made from it is complete."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> what went wrong, one sentence."""
    refused: list[str] = field(default_factory=list)
    """Those that failed because of what they were given (a ValueError): damaged data, an impossible setting."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Name -> why it could not run."""
    cost: list[StageCost] = field(default_factory=list)
    wall_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not self.failed and not self.skipped


def execute(
    jobs: Iterable[Job],
    store_url: str,
    *,
    log: Callable[[str], None] = print,
    poll_seconds: float = 10.0,
    most_pending: int = 8,
    patience: float = 1800.0,
) -> Outcome:
    """Make every artefact that is missing, inside `connect`.

    Jobs start in their order as their inputs become complete and actors answer. A job that fails is reported and
    those that need it are skipped; the rest goes on. KeyboardInterrupt kills the actors and goes on up; partial
    artefacts stay for the next run.

    Args:
        jobs: in the order in which they should start; an artefact is made once.
        store_url: a plain path or fsspec URL that every node of the cluster can reach.
        log: receives one line at a time.
        poll_seconds: how often the running jobs are asked for their progress.
        most_pending: how many actors of a size are asked of Ray before it has placed one of them.
        patience: seconds to wait where nothing runs because the cluster has no room.

    Raises:
        StoreError: an unusable store, or an input that no job makes and the store does not hold.
        ClusterError: no room within `patience`, or never on the embedded Ray.
    """
    run = _Run({job.ref: job for job in jobs}, Store(store_url), log, most_pending, patience)
    try:
        run.until_done(poll_seconds)
    finally:
        run.pool.close()
    return run.outcome()


class _Call(NamedTuple):
    """What a Ray reference is the answer to: `ready`, `run` or `progress`."""

    method: str
    actor: Actor


class _Run:
    def __init__(
        self, jobs: dict[Ref, Job], store: Store, log: Callable[[str], None], most_pending: int, patience: float
    ) -> None:
        self.jobs, self.store, self.log, self.patience = jobs, store, log, patience
        self.pool = Pool(store.url, most_pending)
        self.result = Outcome()
        self.started = self.moved = time.monotonic()
        self.calls: dict[ray.ObjectRef, _Call] = {}
        self.ready: dict[Size, list[tuple[int, Ref]]] = defaultdict(list)
        self.sizes: dict[tuple[float, float], Size] = {}
        self.lost: Counter[Ref] = Counter()
        self.metrics: dict[Ref, dict[str, Any]] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.users: dict[Ref, list[Ref]] = defaultdict(list)
        for ref, job in jobs.items():
            for needed in job.inputs:
                self.users[needed].append(ref)
        self.index = {ref: i for i, ref in enumerate(jobs)}
        self.to_run = self._plan()
        self.sorter = TopologicalSorter({ref: self.to_run.intersection(jobs[ref].inputs) for ref in self.to_run})
        self.sorter.prepare()

    def _plan(self) -> set[Ref]:
        """The jobs without an artefact that a result still depends on, a result being a job that nobody depends on.

        Counted backwards, so an artefact that is gone but that only complete ones were made from is not made again.
        """
        with ThreadPoolExecutor(8) as threads:  # a look-up in a remote store takes its time
            complete = dict(zip(self.jobs, threads.map(lambda ref: self.store.complete(*ref), self.jobs), strict=True))
        chosen: set[Ref] = set()
        order = TopologicalSorter({ref: job.inputs for ref, job in self.jobs.items()}).static_order()
        for ref in reversed([ref for ref in order if ref in self.jobs]):
            if not complete[ref] and (not self.users[ref] or chosen.intersection(self.users[ref])):
                chosen.add(ref)
        for ref, job in self.jobs.items():
            if complete[ref]:
                self.result.reused.append(job.name)
                self.metrics[ref] = self.store.describe(*ref).get("metrics", {})
                self.log(f"reused   {job.name}")
            elif ref not in chosen:
                self.result.unneeded.append(job.name)
        for job in (self.jobs[ref] for ref in chosen):
            for ref in job.inputs:
                if ref not in self.jobs and not self.store.complete(*ref):
                    raise StoreError(f"{job.name} needs {self.store.uri(*ref)}, which is absent and no job makes it.")
        return chosen

    def until_done(self, poll_seconds: float) -> None:
        """Hand out jobs until none is left that could run."""
        next_poll = time.monotonic() + poll_seconds
        self._hand_out()
        while self.pool.busy() or any(self.ready.values()):
            wait = max(0.0, next_poll - time.monotonic())
            for ref in ray.wait(list(self.calls), num_returns=1, timeout=wait)[0]:
                self._receive(ref, self.calls.pop(ref))
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + poll_seconds
            self._hand_out()

    def outcome(self) -> Outcome:
        """What became of the jobs and what they cost."""
        stages: dict[str, StageCost] = {}
        reused = set(self.result.reused)
        for ref, job in self.jobs.items():
            cost = stages.setdefault(ref.stage, StageCost(ref.stage))
            metrics = self.metrics.get(ref, {})
            cost.jobs += 1
            cost.reused += job.name in reused
            cost.work_seconds += metrics.get("seconds", 0.0)
            cost.peak_memory_mb = max(cost.peak_memory_mb, metrics.get("peak_memory_mb", 0.0))
        for stage, (first, last) in self.spans.items():
            stages[stage].wall_seconds = last - first
        self.result.cost = list(stages.values())
        self.result.wall_seconds = time.monotonic() - self.started
        return self.result

    def _hand_out(self) -> None:
        """Give jobs to idle actors, and ask Ray for as many as there are jobs left."""
        for ref in self.sorter.get_ready():
            self._make_ready(ref)
        for size, waiting in self.ready.items():
            for actor, (_, ref) in zip(self.pool.idle(size), list(waiting), strict=False):
                waiting.pop(0)
                self._start(self.jobs[ref], actor)
        for actor in self.pool.ask({size: len(waiting) for size, waiting in self.ready.items() if waiting}):
            self.calls[actor.handle.ready.remote()] = _Call("ready", actor)

    def _make_ready(self, ref: Ref) -> None:
        job = self.jobs[ref]
        asked = job.num_cpus, job.num_gpus
        if asked not in self.sizes:
            self.sizes[asked] = Size(*fit(job.name, *asked, self.log))
        insort(self.ready[self.sizes[asked]], (self.index[ref], ref))

    def _start(self, job: Job, actor: Actor) -> None:
        actor.job, actor.started = job, time.monotonic()
        self.spans.setdefault(job.ref.stage, (actor.started, actor.started))
        self.log(f"started  {job.name}")
        self.calls[actor.handle.run.options(name=job.name).remote(job)] = _Call("run", actor)

    def _receive(self, answer: ray.ObjectRef, call: _Call) -> None:
        actor = call.actor
        try:
            value = ray.get(answer)
        except Exception as error:
            if actor in self.pool and call.method != "progress":  # a lost progress call shows in the job's own
                self._trouble(actor, error)
            return
        self.moved, actor.answered = time.monotonic(), True
        if call.method == "progress":
            if value is not None and actor.job is not None and actor.job.name == value.name:
                self.log(progress_line(value))
        elif call.method == "run":
            job = self._take_back(actor)
            self.metrics[job.ref] = value
            self.result.done.append(job.name)
            self.log(f"finished {job.name}   {duration(time.monotonic() - actor.started)}")
            self.sorter.done(job.ref)

    def _take_back(self, actor: Actor) -> Job:
        job = actor.job
        assert job is not None
        actor.job = None
        self.moved = time.monotonic()
        self.spans[job.ref.stage] = self.spans[job.ref.stage][0], self.moved
        return job

    def _trouble(self, actor: Actor, error: Exception) -> None:
        """A job went wrong in its process, which goes on to the next; or the process itself is lost."""
        if isinstance(error, RayTaskError) and actor.job is not None:
            return self._fail(self._take_back(actor), error)
        self.pool.drop(actor)
        if actor.job is not None:
            job = self._take_back(actor)
        elif self.ready[actor.size]:  # it never came up, and this one waited for it
            job = self.jobs[self.ready[actor.size].pop(0)[1]]
        else:
            return None
        self.lost[job.ref] += not getattr(error, "preempted", False)
        if self.lost[job.ref] > _RETRIES or isinstance(error, RayTaskError):
            return self._fail(job, error)
        for idle in self.pool.idle():  # maybe of the same lost machine
            self.pool.drop(idle)
        self.log(f"lost     {job.name}: its process or machine; it goes on from its checkpoint")
        return self._make_ready(job.ref)

    def _fail(self, job: Job, error: Exception) -> None:
        reason = self.result.failed[job.name] = sentence(error)
        self.log(f"failed   {job.name}: {reason}")
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ValueError):  # says what is wrong; the rest needs its traceback
            self.result.refused.append(job.name)
        else:
            self.log(str(error))
        self._skip_users(job.ref, job.name)

    def _skip_users(self, ref: Ref, culprit: str) -> None:
        for user in self.users[ref]:
            name = self.jobs[user].name
            if user in self.to_run and name not in self.result.skipped:
                self.result.skipped[name] = f"It needs {culprit}, which failed."
                self.log(f"skipped  {name}: it needs {culprit}, which failed")
                self._skip_users(user, culprit)

    def _poll(self) -> None:
        busy, asked = self.pool.busy(), {call.actor for call in self.calls.values() if call.method == "progress"}
        for actor in busy:
            if actor not in asked:
                ref = actor.handle.progress.options(concurrency_group="progress").remote()
                self.calls[ref] = _Call("progress", actor)
        now = time.monotonic()
        waiting = sum(map(len, self.ready.values()))
        if not busy and waiting:
            self.log(f"waiting  {waiting} jobs, no worker yet, {duration(now - self.moved)}; there is {resources()}")
            if now - self.moved > self.patience:
                raise ClusterError(
                    f"No worker came within {duration(self.patience)}; there is {resources()}. Start machines, or wait "
                    "longer with --patience."
                )
        ended, troubles = (
            len(self.result.done) + len(self.result.reused),
            len(self.result.failed) + len(self.result.skipped),
        )
        self.log(
            f"{ended}/{len(self.jobs)} jobs done, {len(busy)} running, {troubles} failed or skipped, "
            f"{duration(now - self.started)}"
        )


def progress_line(progress: Progress) -> str:
    """One line: name, done/total, per cent, rate, time left and metrics."""
    parts = [f"{progress.done:g}/{progress.total:g} {progress.unit}"]
    if progress.total:
        parts.append(f"{100 * progress.done / progress.total:.0f}%")
    if progress.rate is not None:
        parts.append(f"{progress.rate:.3g} {progress.unit}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    parts += [f"{name}={value:.4g}" for name, value in progress.metrics.items()]
    return f"running  {progress.name}   " + "  ".join(parts)


def duration(seconds: float) -> str:
    """Such as 4.2s, 1m08s, 2h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def sentence(error: BaseException) -> str:
    """The first line of what went wrong, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if isinstance(cause, RayActorError):
        return f"Its process died and could not be restarted (out of memory, or killed): {text}"
    if isinstance(cause, ValueError | RayError) and text:
        return text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
