"""The stage graph without Ray: which jobs need which, and which of them have to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from actors.job import Job
from actors.worker import Worker


class GraphError(ValueError):
    """Jobs that do not form a graph: a name or artefact twice, or a circle."""


@dataclass(frozen=True)
class Node:
    """A job and where it runs."""

    job: Job
    worker: type[Worker]
    num_cpus: float = 1.0
    num_gpus: float = 0.0


class Graph:
    """Nodes by name; a job needs the jobs that make its inputs.

    Raises GraphError for two jobs of one name or one artefact, and for jobs that wait for each other.
    """

    def __init__(self, nodes: Sequence[Node]):
        self.nodes: dict[str, Node] = {}
        makers: dict[tuple[str, str], str] = {}
        for node in nodes:
            name, artefact = node.job.name, node.job.artefact
            if name in self.nodes:
                raise GraphError(f"Two jobs are called {name!r}; names must be unique.")
            if artefact in makers:
                raise GraphError(
                    f"The jobs {makers[artefact]!r} and {name!r} make the same artefact "
                    f"{artefact[0]}/{artefact[1]}; keep one of them."
                )
            self.nodes[name], makers[artefact] = node, name
        self.needs: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.used_by: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.outside: dict[str, list[tuple[str, str]]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            # dict.fromkeys: an artefact may be an input under two names, in a fixed order all the same.
            for ref in dict.fromkeys(ref for refs in node.job.inputs.values() for ref in refs):
                if ref in makers:
                    self.needs[name].append(makers[ref])
                    self.used_by[makers[ref]].append(name)
                else:
                    self.outside[name].append(ref)
        try:
            self._order = list(TopologicalSorter(self.needs).static_order())
        except CycleError as error:
            raise GraphError(f"These jobs wait for each other: {' -> '.join(error.args[1])}.") from None

    def to_run(self, complete: Iterable[str]) -> set[str]:
        """The jobs without an artefact that a result still depends on.

        A result is a job nobody depends on. Counted backwards from there, so an artefact that is gone but
        that only complete ones were made from is not made again.
        """
        complete, chosen = set(complete), set()
        for name in reversed(self._order):
            wanted = not self.used_by[name] or any(user in chosen for user in self.used_by[name])
            if wanted and name not in complete:
                chosen.add(name)
        return chosen

    def downstream(self, name: str) -> list[str]:
        """Every job that depends on this one, directly or not."""
        found: dict[str, None] = {}
        stack = [name]
        while stack:
            for user in self.used_by[stack.pop()]:
                if user not in found:
                    found[user] = None
                    stack.append(user)
        return list(found)
