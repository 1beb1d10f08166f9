"""Run a stage graph over Ray: reuse what stands, spread the rest, keep going when a job fails."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from actors.host import duration, remote
from actors.stage import CHECKPOINT, CHECKPOINT_SECONDS, Job, Ref
from actors.store import REMEDY, Store, StoreError
from pipeline.cluster import ClusterError, check_there, fit, fits, resources
from pipeline.needs import NOTHING, Needs
from pipeline.outcome import Outcome, Span, StageCost

_RETRIES = 4
"""How often a job whose process or machine was lost is tried again; from a checkpoint that it saved since, always."""
_REST_SECONDS = 5.0
"""How long a job waits after its process was killed for want of memory; doubles with each time, so that what fills the
machine for half a minute costs no run."""
_ANSWER_SECONDS = 1.0
"""How long a poll waits for the progress of busy processes."""
IDLE_SECONDS = 60.0
"""How long a process without work is kept; a machine that has none any more can be let go."""


def execute(
    jobs: Iterable[Job],
    store_url: str,
    *,
    log: Callable[[str], None] = print,
    poll_seconds: float = 10.0,
    most_pending: int = 8,
    wait_for_nodes: float = 1800.0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
    needs: Mapping[str, Needs] = {},
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
        wait_for_nodes: seconds to wait where nothing runs because the cluster has no room.
        checkpoint_seconds: how much work a job may lose with its process.
        idle_seconds: how long a process without work is kept.
        needs: what stages need of a machine besides processors.

    Raises:
        StoreError: an unusable store, or an input that no job makes and the store does not hold.
        ClusterError: no room within `wait_for_nodes`, or never on the embedded Ray.
    """
    limits = (most_pending, wait_for_nodes, checkpoint_seconds, idle_seconds, needs)
    run = _Run({job.ref: job for job in jobs}, Store(store_url), log, *limits)
    try:
        run.until_done(poll_seconds)
    finally:
        while run.actors:
            run.drop(run.actors[0])
    return run.outcome()


def standing(jobs: Iterable[Job], store: Store) -> Outcome:
    """What `execute` would find before it made anything: what is reused and what that took. Needs no Ray."""
    return _Run({job.ref: job for job in jobs}, store, lambda line: None).outcome()


def discard_damaged(jobs: Iterable[Job], store: Store, log: Callable[[str], None]) -> None:
    """Check every artefact that stands against its checksums; take those that are damaged, and all that were made from
    them, out of the store."""
    by_ref = {job.ref: job for job in jobs}
    with ThreadPoolExecutor(8) as threads:
        standing = dict(zip(by_ref, threads.map(lambda ref: store.complete(*ref), by_ref), strict=True))
        damage = threads.map(lambda ref: store.damage(*ref) if standing[ref] else None, by_ref)
    found, gone = dict(zip(by_ref, damage, strict=True)), set[Ref]()
    for ref in _ordered(by_ref):
        if found[ref] or gone.intersection(by_ref[ref].inputs):
            gone.add(ref)
            if standing[ref]:
                fault = (found[ref] or "it was made from what is damaged").removesuffix(f"; {REMEDY}.")
                log(f"repairs  {by_ref[ref].name}: {fault}")
                store.discard(*ref)


def _ordered(jobs: Mapping[Ref, Job]) -> list[Ref]:
    """Every job after those that it needs."""
    graph = TopologicalSorter({ref: job.inputs for ref, job in jobs.items()})
    return [ref for ref in graph.static_order() if ref in jobs]


Size = tuple[float, float, Needs]
"""CPUs and GPUs that an actor is given, and what else; jobs that ask for the same share actors."""


@dataclass(eq=False)
class Actor:
    """A host, or one that Ray has yet to place."""

    handle: Any  # a Ray actor handle, whose type knows no methods
    size: Size
    number: int
    machine: str = ""
    """Where Ray placed it; empty before that."""
    job: Job | None = None
    since: float = field(default_factory=time.monotonic)
    """When it was given its job, or ended it."""


class _Run:
    """Hosts are reused from job to job. Ray does the accounting: what is wanted reaches it as actors that it has yet to
    place, which is also what a cluster that grows by demand looks at."""

    def __init__(
        self,
        jobs: dict[Ref, Job],
        store: Store,
        log: Callable[[str], None],
        most_pending: int = 0,
        wait_for_nodes: float = 0.0,
        checkpoint_seconds: float = 0.0,
        idle_seconds: float = IDLE_SECONDS,
        needs: Mapping[str, Needs] = {},
    ) -> None:
        self.jobs, self.store, self.log = jobs, store, log
        self.most_pending, self.wait_for_nodes = most_pending, wait_for_nodes
        self.checkpoint_seconds, self.idle_seconds, self.needs = checkpoint_seconds, idle_seconds, needs
        self.result = Outcome()
        self.started = self.moved = time.monotonic()
        self.actors: list[Actor] = []
        self.environment = ", ".join(sorted({job.spec.env for job in jobs.values() if hasattr(job.spec, "env")}))
        self.hired = 0
        """How many actors there were, those that are gone included."""
        self.calls: dict[ray.ObjectRef, Actor] = {}
        """What is awaited: an idle actor's first answer, or a busy one's job."""
        self.sizes: dict[Size, Size] = {}
        """What is asked for, and what it is cut to."""
        self.waiting: dict[Size, list[tuple[int, Job]]] = {}
        """Heaps of the jobs that could run but for an actor, each with its place in the order in which they start."""
        self.resting: list[tuple[float, Job]] = []
        """Jobs that are to run again, and when."""
        self.lost: Counter[Ref] = Counter()
        """How often a job's process was lost since it saved a checkpoint."""
        self.saved: dict[Ref, str | None] = {}
        """The checkpoint that it had when its process was lost."""
        self.cost = {ref.stage: StageCost(ref.stage) for ref in jobs}
        self.begun: dict[str, float] = {}
        """When the first job of a stage was started."""
        self.order = _ordered(jobs)
        """Every job after those that it needs, whatever order they are to start in."""
        self.left = self._plan()
        """Jobs that are not done, in their order."""
        self.place = {ref: place for place, ref in enumerate(self.left)}
        self.graph = TopologicalSorter({ref: self.left.keys() & job.inputs for ref, job in self.left.items()})
        self.graph.prepare()

    def _plan(self) -> dict[Ref, Job]:
        """The jobs without an artefact, also where everything is there that was made from it: reports read those."""
        with ThreadPoolExecutor(8) as threads:  # a look-up in a remote store takes its time
            complete = dict(zip(self.jobs, threads.map(lambda ref: self.store.complete(*ref), self.jobs), strict=True))
        for ref, job in self.jobs.items():
            self.cost[ref.stage].jobs += 1
            if complete[ref]:
                self.result.reused.append(job.name)
                self.cost[ref.stage].reused += 1
                self._account(ref, self.store.describe(*ref).get("metrics", {}))
                self.log(f"reused   {job.name}")
        left = {ref: job for ref, job in self.jobs.items() if not complete[ref]}
        for job in left.values():
            for ref in job.inputs:
                if ref not in self.jobs and not self.store.complete(*ref):
                    raise StoreError(f"{job.name} needs {self.store.uri(*ref)}, which is absent and no job makes it.")
        return left

    def until_done(self, poll_seconds: float) -> None:
        """Hand out jobs until none is left that could run."""
        next_poll = time.monotonic() + poll_seconds
        self._hand_out()
        while self.left:
            soon = min([next_poll, *(due for due, _ in self.resting)])
            wait = max(0.0, soon - time.monotonic())
            if self.calls:
                for answer in ray.wait(list(self.calls), num_returns=1, timeout=wait)[0]:
                    self._receive(answer, self.calls.pop(answer))
            else:
                time.sleep(wait)  # all that is left is resting
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + poll_seconds
            self._hand_out()

    def outcome(self) -> Outcome:
        """What became of the jobs and what they cost."""
        self.result.cost = list(self.cost.values())
        self.result.wall_seconds = time.monotonic() - self.started
        return self.result

    def _account(self, ref: Ref, metrics: dict[str, Any]) -> None:
        cost = self.cost[ref.stage]
        cost.work_seconds += metrics.get("seconds", 0.0)
        cost.peak_memory_mb = max(cost.peak_memory_mb, metrics.get("peak_memory_mb", 0.0))

    def drop(self, actor: Actor) -> None:
        """Kill an actor and forget it."""
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def _idle(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.machine and actor.job is None]

    def _hand_out(self) -> None:
        """Give jobs to idle actors, and ask Ray for as many as there are jobs that could run besides."""
        for ref in self.graph.get_ready():
            self._wait(self.jobs[ref])
        rested = [entry for entry in self.resting if entry[0] <= time.monotonic()]
        for entry in rested:
            self.resting.remove(entry)
            self._wait(entry[1])
        for actor in self._idle():
            if self.waiting.get(actor.size):
                self._start(heappop(self.waiting[actor.size])[1], actor)
        self._ask({size: len(jobs) for size, jobs in self.waiting.items()})

    def _wait(self, job: Job) -> None:
        """Enter a job that could run."""
        needs = self.needs.get(job.ref.stage, NOTHING)
        asked = job.num_cpus, job.num_gpus, needs
        if asked not in self.sizes:
            self.sizes[asked] = (*fit(job.name, job.num_cpus, job.num_gpus, self.log, needs), needs)
        heappush(self.waiting.setdefault(self.sizes[asked], []), (self.place[job.ref], job))

    def _start(self, job: Job, actor: Actor) -> None:
        actor.job, actor.since = job, time.monotonic()
        self.begun.setdefault(job.ref.stage, actor.since)
        self.log(f"started  {job.name}")
        self.calls[actor.handle.run.options(name=job.name).remote(job)] = actor

    def _ask(self, wanted: dict[Size, int]) -> None:
        """Let what Ray has yet to place follow what is wanted; idle actors make way for those of another size."""
        for size in {actor.size for actor in self.actors} | wanted.keys():
            pending = [actor for actor in self.actors if not actor.machine and actor.size == size]
            number = min(wanted.get(size, 0), self.most_pending)
            for actor in pending[number:]:
                self.drop(actor)
            for _ in range(number - len(pending)):
                self.hired += 1
                name = f"worker {self.hired} ({self.environment})"
                cpus, gpus, needs = size
                host = remote(self.store.url, cpus, gpus, self.checkpoint_seconds, name, **needs.options())
                self.actors.append(actor := Actor(host, size, self.hired))
                self.calls[actor.handle.machine.remote()] = actor
        pending_sizes = {actor.size for actor in self.actors if not actor.machine}
        for actor in self._idle():
            if pending_sizes - {actor.size}:
                self.drop(actor)

    def _receive(self, answer: ray.ObjectRef, actor: Actor) -> None:
        """A job has ended, or an actor that was asked for is there."""
        if actor not in self.actors:
            return
        (job, actor.job), since = (actor.job, None), actor.since
        actor.since = self.moved = time.monotonic()
        if job is not None:
            self.cost[job.ref.stage].wall_seconds = self.moved - self.begun[job.ref.stage]
            place = (job.ref.stage, actor.machine, actor.number)
            span = Span(job.name, *place, since - self.started, self.moved - since, finished=False)
            self.result.timeline.append(span)
        try:
            value = ray.get(answer)
        except Exception as error:
            self._trouble(actor, job, error)
            return
        if job is None:
            actor.machine = value
            return
        self._account(job.ref, value)
        self.result.timeline[-1].finished = True
        reused = "reused" in value  # another run made it, or this one in a process that was lost before it could say so
        self.cost[job.ref.stage].reused += reused
        (self.result.reused if reused else self.result.done).append(job.name)
        self.log(f"{'reused  ' if reused else 'finished'} {job.name}   {duration(self.moved - since)}")
        del self.left[job.ref]
        self.graph.done(job.ref)

    def _trouble(self, actor: Actor, job: Job | None, error: Exception) -> None:
        """A job went wrong in its process, which goes on to the next; or the process itself is lost."""
        raised = isinstance(error, RayTaskError)
        if job is None or not raised:
            check_there()
            self.drop(actor)
            if job is None and not self.waiting.get(actor.size):
                return
            # One that never came up was waited for by the first job of its size.
            job = job or heappop(self.waiting[actor.size])[1]
            if (saved := self.store.saved(*job.ref, CHECKPOINT)) != self.saved.get(job.ref):
                self.saved[job.ref], self.lost[job.ref] = saved, 0
            self.lost[job.ref] += not getattr(error, "preempted", False)
        if raised or self.lost[job.ref] > _RETRIES:
            self._fail(job, error)
            return
        for idle in self._idle():  # maybe of the same lost machine
            self.drop(idle)
        memory = isinstance(error, OutOfMemoryError)
        rest = _REST_SECONDS * 2 ** (self.lost[job.ref] - 1) if memory else 0.0
        self.resting.append((time.monotonic() + rest, job))
        when = f"was killed because its machine ran out of memory; in {duration(rest)}" if memory else "is lost;"
        place = "goes on from its checkpoint" if self.saved.get(job.ref) else "begins anew"
        self.log(f"lost     {job.name}: its process {when} it {place}")

    def _fail(self, job: Job, error: Exception) -> None:
        del self.left[job.ref]
        reason = sentence(error)
        if "is absent or incomplete" in reason and all(self.store.complete(*ref) for ref in job.inputs):
            reason += f" Here it is there: give a --store that all machines reach, not {self.store.url}."
        self.result.failed[job.name] = reason
        self.log(f"failed   {job.name}: {reason}")
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ValueError):
            self.result.refused.append(job.name)
        elif not (isinstance(cause, OSError) or _died(cause)):  # these say what is wrong; the rest needs its traceback
            self.log(str(error))
        lost = {job.ref}
        for ref in self.order:
            if ref in self.left and lost.intersection(self.jobs[ref].inputs):
                lost.add(ref)
                self.result.skipped[self.left.pop(ref).name] = f"it needs {job.name}, which failed"

    def _poll(self) -> None:
        """Say how far the running jobs are and how long others have waited; let go of processes without work."""
        check_there()
        busy = [actor for actor in self.actors if actor.job is not None]
        waiting, now, result = sum(map(len, self.waiting.values())), time.monotonic(), self.result
        done, lost = len(result.done + result.reused), len(result.failed | result.skipped)
        shares = f"{done}/{len(self.jobs)} jobs done, {len(busy)} running, {lost} failed or skipped"
        self.log(f"{shares}, {duration(now - self.started)}")
        asked = [actor.handle.progress.options(concurrency_group="progress").remote() for actor in busy]
        for answer in ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS)[0] if asked else []:
            with suppress(RayError):  # a lost process shows in its job
                if line := ray.get(answer):
                    self.log(line)
        for actor in self._idle():
            if now - actor.since > self.idle_seconds:
                self.drop(actor)
        if waiting and not busy:
            sizes = [size for size, jobs in self.waiting.items() if jobs]
            wanted = " or ".join(", ".join(filter(None, (f"{c:g} CPUs and {g:g} GPUs", str(n)))) for c, g, n in sizes)
            number = "1 job waits" if waiting == 1 else f"{waiting} jobs wait"
            lack = f"{number} for a machine with {wanted} free; there is {resources()}"
            self.log(f"waiting  {lack}; {duration(now - self.moved)} of {duration(self.wait_for_nodes)}")
            if now - self.moved > self.wait_for_nodes and not any(fits(*size) for size in sizes):
                limit = f"No machine came within {duration(self.wait_for_nodes)}: {lack}"
                raise ClusterError(f"{limit}. Start machines that have it, or wait longer with --wait-for-nodes.")


def _died(cause: BaseException) -> bool:
    """Whether a process ended without a word; one that did not come up has said why."""
    return isinstance(cause, RayActorError) and not cause.actor_init_failed


def sentence(error: BaseException) -> str:
    """The first line of what went wrong, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if _died(cause):
        why = "killed, out of memory, or ended by what ran in it, such as a family's own code"
        return f"Its process died {_RETRIES + 1} times without a checkpoint in between ({why})."
    if isinstance(cause, ValueError | RayError) and text:
        return text
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: {cause.filename or 'the store'}"
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
