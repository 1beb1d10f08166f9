"""Hosts that are reused from job to job. Ray does the accounting: what is wanted reaches it as actors that it has yet
to place, which is also what a cluster that grows by demand looks at."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from actors.host import remote
from actors.stage import Job


class Size(NamedTuple):
    """What an actor is given; jobs that ask for the same share actors."""

    num_cpus: float
    num_gpus: float


@dataclass(eq=False)
class Actor:
    """A host, or one that Ray has yet to place."""

    handle: Any  # a Ray actor handle, whose type knows no methods
    size: Size
    answered: bool = False
    job: Job | None = None
    started: float = 0.0
    """When it was given its job."""


class Pool:
    """All actors of a run."""

    def __init__(self, store_url: str, most_pending: int) -> None:
        """At most `most_pending` actors of a size are asked for before Ray has placed one of them."""
        self._store_url, self._most_pending = store_url, most_pending
        self._actors: list[Actor] = []
        self._numbers = itertools.count()

    def busy(self) -> list[Actor]:
        """Those with a job."""
        return [actor for actor in self._actors if actor.job is not None]

    def pending(self) -> list[Actor]:
        """Those that have not answered yet."""
        return [actor for actor in self._actors if not actor.answered]

    def idle(self, size: Size | None = None) -> list[Actor]:
        """Those that wait for a job."""
        return [a for a in self._actors if a.answered and a.job is None and size in (None, a.size)]

    def ask(self, wanted: Mapping[Size, int]) -> list[Actor]:
        """Let what is pending follow the number of `wanted` actors by size; idle actors make way for those of another.

        Returns the new ones, whose `ready` is to be awaited.
        """
        new = []
        for size in {actor.size for actor in self._actors} | wanted.keys():
            pending = [actor for actor in self.pending() if actor.size == size]
            number = min(wanted.get(size, 0), self._most_pending)
            for actor in pending[number:]:
                self.drop(actor)
            new += [self._start(size) for _ in range(number - len(pending))]
        for actor in self.idle():
            if any(other.size != actor.size for other in self.pending()):
                self.drop(actor)
        return new

    def drop(self, actor: Actor) -> None:
        """Kill an actor and forget it."""
        self._actors.remove(actor)
        ray.kill(actor.handle)

    def close(self) -> None:
        """Kill all actors."""
        while self._actors:
            self.drop(self._actors[0])

    def __contains__(self, actor: Actor) -> bool:
        return actor in self._actors

    def _start(self, size: Size) -> Actor:
        name = f"host-{next(self._numbers)}"
        handle = remote(self._store_url, num_cpus=size.num_cpus, num_gpus=size.num_gpus, name=name)
        self._actors.append(Actor(handle, size))
        return self._actors[-1]
