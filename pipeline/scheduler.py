"""Run a stage graph over Ray: reuse what stands, spread the rest, keep going when a job fails."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.store import Store, StoreError
from actors.worker import Progress
from pipeline.cluster import connect
from pipeline.graph import Graph, Node
from pipeline.pool import Actor, Kind, Pool

__all__ = ["Node", "Outcome", "StageCost", "connect", "execute"]


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
    nodes: Sequence[Node],
    store_url: str,
    *,
    log: Callable[[str], None] = print,
    poll_seconds: float = 10.0,
) -> Outcome:
    """Make every artefact that is missing, inside `connect`.

    Jobs start in the order of `nodes` as their inputs become complete and CPUs free, but an actor that has
    ended a job takes the next of its kind first. A job that fails is reported and those that need it are
    skipped; the rest goes on. KeyboardInterrupt kills the actors and goes on up; partial artefacts stay for
    the next run.

    Args:
        nodes: jobs; one that makes an input of another is its predecessor.
        store_url: a plain path or fsspec URL that every node of the cluster can reach.
        log: receives one line at a time.
        poll_seconds: how often the running jobs are asked for their progress.

    Raises:
        GraphError: two jobs of one name or artefact, or jobs that wait for each other.
        StoreError: an unusable store, or an input that no job makes and the store does not hold.
    """
    run = _Run(Graph(nodes), Store(store_url), log)
    try:
        run.until_done(poll_seconds)
    finally:
        run.pool.close()
    return run.outcome()


@dataclass
class _Running:
    """A table entry: the job that a Ray reference belongs to, and whether it is the job or its progress."""

    node: Node
    actor: Actor
    started: float
    asks_progress: bool = False


class _Run:
    def __init__(self, graph: Graph, store: Store, log: Callable[[str], None]):
        self.graph, self.store, self.log = graph, store, log
        self.started = time.monotonic()
        self.pending: dict[ray.ObjectRef, _Running] = {}
        self.ready: dict[Kind, list[tuple[int, str]]] = {}
        self.result = Outcome()
        self.metrics: dict[str, dict[str, Any]] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.pool = Pool(store.url, log)
        self._plan()

    def _plan(self) -> None:
        names = list(self.graph.nodes)
        with ThreadPoolExecutor(8) as threads:  # a look-up in a remote store takes its time
            found = zip(names, threads.map(self._complete, names), strict=True)
            complete = {name for name, there in found if there}
        self.to_run = self.graph.to_run(complete)
        for name in names:
            if name in complete:
                self.result.reused.append(name)
                self.metrics[name] = self.store.describe(*self._artefact(name)).get("metrics", {})
                self.log(f"reused   {name}")
            elif name not in self.to_run:
                self.result.unneeded.append(name)
        self.index = {name: i for i, name in enumerate(names)}
        self.missing = {name: sum(need in self.to_run for need in self.graph.needs[name]) for name in self.to_run}
        for name in names:
            if name in self.to_run:
                self._check_outside(name)
                if not self.missing[name]:
                    self._make_ready(name)

    def until_done(self, poll_seconds: float) -> None:
        next_poll = time.monotonic() + poll_seconds
        self._dispatch()
        while any(not entry.asks_progress for entry in self.pending.values()) or any(self.ready.values()):
            wait = max(0.0, next_poll - time.monotonic())
            if self.pending:
                finished, _ = ray.wait(list(self.pending), num_returns=1, timeout=wait)
            else:  # the cluster has shrunk below what the next job takes
                time.sleep(wait)
                finished = []
            for ref in finished:
                self._receive(ref, self.pending.pop(ref))
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + poll_seconds
            self._dispatch()

    def outcome(self) -> Outcome:
        stages: dict[str, StageCost] = {}
        reused = set(self.result.reused)
        for name, node in self.graph.nodes.items():
            cost = stages.setdefault(node.job.stage, StageCost(node.job.stage))
            cost.jobs += 1
            cost.reused += name in reused
            metrics = self.metrics.get(name, {})
            cost.work_seconds += metrics.get("seconds", 0.0)
            cost.peak_memory_mb = max(cost.peak_memory_mb, metrics.get("peak_memory_mb", 0.0))
        for stage, (first, last) in self.spans.items():
            stages[stage].wall_seconds = last - first
        self.result.cost = list(stages.values())
        self.result.wall_seconds = time.monotonic() - self.started
        return self.result

    def _dispatch(self) -> None:
        # Idle actors first take jobs of their own kind: starting another costs seconds.
        for idle_only in (True, False):
            for kind in sorted((kind for kind, heap in self.ready.items() if heap), key=self._head):
                while self.ready[kind] and (actor := self.pool.acquire(kind, idle_only=idle_only)):
                    self._start(heappop(self.ready[kind])[1], actor)

    def _head(self, kind: Kind) -> int:
        return self.ready[kind][0][0]

    def _start(self, name: str, actor: Actor) -> None:
        node, now = self.graph.nodes[name], time.monotonic()
        first, last = self.spans.get(node.job.stage, (now, now))
        self.spans[node.job.stage] = (first, last)
        self.log(f"started  {name}")
        ref = actor.handle.run.options(name=name).remote(node.worker, node.job)
        self.pending[ref] = _Running(node, actor, now)

    def _receive(self, ref: ray.ObjectRef, entry: _Running) -> None:
        name, stage = entry.node.job.name, entry.node.job.stage
        try:
            value = ray.get(ref)
        except Exception as error:
            if not entry.asks_progress:  # a lost progress call is seen again in the job's own
                self._fail(entry, error)
            return
        entry.actor.answered = True
        if entry.asks_progress:
            if value is not None and value.name not in self.metrics:
                self.log(progress_line(value))
            return
        entry.actor.busy = False
        now = time.monotonic()
        self.spans[stage] = (self.spans[stage][0], now)
        self.metrics[name] = value
        self.result.done.append(name)
        self.log(f"finished {name} in {duration(now - entry.started)}")
        for user in self.graph.used_by[name]:
            if user in self.missing:
                self.missing[user] -= 1
                if not self.missing[user]:
                    self._make_ready(user)

    def _fail(self, entry: _Running, error: Exception) -> None:
        name, stage = entry.node.job.name, entry.node.job.stage
        if isinstance(error, RayTaskError):
            entry.actor.busy = False  # the job went wrong, its process did not
        else:
            self.pool.drop(entry.actor)
        self.spans[stage] = (self.spans[stage][0], time.monotonic())
        self.result.failed[name] = sentence(error)
        self.log(f"failed   {name}: {self.result.failed[name]}")
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ValueError):  # says what is wrong; the rest needs its traceback
            self.result.refused.append(name)
        else:
            self.log(str(error))
        for user in self.graph.downstream(name):
            if user in self.to_run and user not in self.result.skipped:
                self.result.skipped[user] = f"It needs {name}, which failed."
                self.log(f"skipped  {user}: it needs {name}, which failed")

    def _poll(self) -> None:
        running = [entry for entry in self.pending.values() if not entry.asks_progress]
        asked = {entry.actor for entry in self.pending.values() if entry.asks_progress}
        silent = [entry for entry in running if not entry.actor.answered]
        for entry in silent:
            self.log(f"waiting  {entry.node.job.name}: no worker yet, {self._elapsed(entry)}")
        if any(entry.actor in asked for entry in silent):
            self.pool.drop_idle()  # it may wait for room that an idle one holds on the only machine that fits
        for entry in running:
            if entry.actor not in asked:
                ref = entry.actor.handle.progress.options(concurrency_group="progress").remote()
                self.pending[ref] = _Running(entry.node, entry.actor, entry.started, asks_progress=True)
        self.pool.refresh()
        ended, all_jobs = len(self.result.done) + len(self.result.reused), len(self.graph.nodes)
        troubles = len(self.result.failed) + len(self.result.skipped)
        self.log(
            f"{ended}/{all_jobs} jobs done, {len(running)} running, {troubles} failed or skipped, "
            f"{duration(time.monotonic() - self.started)}"
        )

    def _make_ready(self, name: str) -> None:
        heappush(self.ready.setdefault(self.pool.kind(self.graph.nodes[name]), []), (self.index[name], name))

    def _check_outside(self, name: str) -> None:
        for ref in self.graph.outside[name]:
            if not self.store.complete(*ref):
                raise StoreError(f"{name} needs {self.store.uri(*ref)}, which is absent and no job makes it.")

    def _artefact(self, name: str) -> tuple[str, str]:
        return self.graph.nodes[name].job.artefact

    def _complete(self, name: str) -> bool:
        return self.store.complete(*self._artefact(name))

    @staticmethod
    def _elapsed(entry: _Running) -> str:
        return duration(time.monotonic() - entry.started)


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
