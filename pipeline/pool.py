"""Actors that are reused from job to job, as many at once as the cluster has room for."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from actors.host import remote
from pipeline.cluster import largest_machine
from pipeline.graph import Node

_SLACK = 1e-6  # fractions of a CPU do not add up exactly


@dataclass(frozen=True)
class Kind:
    """What an actor is given; jobs that ask for the same share actors."""

    num_cpus: float
    num_gpus: float


@dataclass(eq=False)
class Actor:
    handle: Any  # a Ray actor handle, whose type knows no methods
    kind: Kind
    name: str
    busy: bool = False
    answered: bool = False
    """Whether it has ever replied; until then it may be waiting for room on a node."""


class Pool:
    """Hands out actors; counts CPUs and GPUs itself, so that none is started that Ray could not place."""

    def __init__(self, store_url: str, log: Callable[[str], None]):
        self._store_url, self._log = store_url, log
        self._actors: list[Actor] = []
        self._kinds: dict[tuple[float, float], Kind] = {}
        self._numbers = itertools.count()
        self.refresh()

    def refresh(self) -> None:
        """Read anew what the cluster has; nodes come and go."""
        self._room = _amounts(ray.cluster_resources())

    def kind(self, node: Node) -> Kind:
        """What the node runs on: what it asks for, or else all CPUs of the largest machine there is; says so once.

        Raises ClusterError where no machine has the GPUs.
        """
        asked = (node.num_cpus, node.num_gpus)
        if asked not in self._kinds:
            self._kinds[asked] = self._fit(node)
        return self._kinds[asked]

    def acquire(self, kind: Kind, *, idle_only: bool) -> Actor | None:
        """An idle actor of the kind; or a new one where there is room, for which idle others make way."""
        idle = next((actor for actor in self._actors if actor.kind == kind and not actor.busy), None)
        if idle is None and not idle_only and self._make_room(kind):
            name = f"host-{next(self._numbers)}"
            handle = remote(self._store_url, num_cpus=kind.num_cpus, num_gpus=kind.num_gpus, name=name)
            idle = Actor(handle, kind, name)
            self._actors.append(idle)
        if idle is not None:
            idle.busy = True
        return idle

    def drop(self, actor: Actor) -> None:
        """Kill an actor and forget it."""
        self._actors.remove(actor)
        ray.kill(actor.handle)

    def drop_idle(self) -> None:
        """Kill every idle actor."""
        for actor in [actor for actor in self._actors if not actor.busy]:
            self.drop(actor)

    def close(self) -> None:
        """Kill all actors."""
        while self._actors:
            self.drop(self._actors[0])

    def _make_room(self, kind: Kind) -> bool:
        idle = [actor for actor in self._actors if not actor.busy]
        busy = [actor for actor in self._actors if actor.busy]
        if not self._fits(kind, busy):
            return False
        while not self._fits(kind, busy + idle):
            self.drop(idle.pop())
        return True

    def _fits(self, kind: Kind, actors: list[Actor]) -> bool:
        cpus = kind.num_cpus + sum(actor.kind.num_cpus for actor in actors)
        gpus = kind.num_gpus + sum(actor.kind.num_gpus for actor in actors)
        return cpus <= self._room[0] + _SLACK and gpus <= self._room[1] + _SLACK

    def _fit(self, node: Node) -> Kind:
        gpus = node.num_gpus
        cpus = min(node.num_cpus, largest_machine(node.worker.__name__, gpus))
        if cpus != node.num_cpus:
            self._log(
                f"{node.worker.__name__} asks for {_in_words(node.num_cpus, gpus)}; the largest machine offers "
                f"{_in_words(cpus, gpus)}, so it runs with that."
            )
        return Kind(cpus, gpus)


def _amounts(resources: Mapping[str, float]) -> tuple[float, float]:
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _in_words(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"
