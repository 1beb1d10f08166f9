"""What surely does not fit into memory is refused before anything starts, with a lower bound of what it would take."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import ray

from actors.artefacts import layout_of
from actors.stage import Job, Stack
from actors.stages.assess import Assess
from actors.stages.collect import Collect
from actors.stages.warmstart import WarmStart
from pipeline.cluster import address_given
from pipeline.config import ConfigError

_COPIES = 16
"""Bytes of a weight that is learned: itself, its gradient, and the optimiser's two moments."""


def check_memory(jobs: Iterable[Job]) -> None:
    """Raise ConfigError for the first job that this machine cannot hold; to a cluster larger ones may come."""
    if address_given():
        return
    (machine,) = (node["Resources"] for node in ray.nodes() if node["Alive"])
    # Ray keeps a part of a machine's memory for its object store.
    there = machine["memory"] + machine["object_store_memory"]
    for job in jobs:
        for needed, what in _needs(job.spec):
            if needed > there:
                fault = f"{job.name} needs at least {needed / 1e9:,.1f} GB for {what}"
                advice = "make it smaller, or give fewer tasks to an actor (tasks_per_actor)"
                raise ConfigError(f"{fault}, and this machine has {there / 1e9:,.1f} GB; {advice}.")


def _needs(spec: Any) -> Iterator[tuple[float, str]]:
    """Bytes that a job holds at once, each way of needing them by itself."""
    side_by_side = len(spec.tasks) if isinstance(spec, Stack) and not getattr(spec, "pooled", ()) else 1
    for config, widths in _networks(spec):
        number = side_by_side * getattr(config, "members", 1)
        copies = f", {number} times" if number > 1 else ""
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        yield float(number * weights * _COPIES), f"a network of {' x '.join(map(str, widths))}{copies}"
        batch = getattr(config, "batch_size", 0)
        yield float(number * batch * max(widths) * 4), f"batches of {batch} in layers of {max(widths)}{copies}"
    if not hasattr(spec, "env"):
        return
    bytes_of_a_row = 4 * layout_of(spec.env).context_size
    for count, what in _rows(spec):
        yield float(count * bytes_of_a_row), what
    if isinstance(spec, Collect | WarmStart):
        bytes_of_a_step, steps = 4 * layout_of(spec.env).row_size, spec.config.steps
        yield float(side_by_side * steps * bytes_of_a_step), f"{steps:,} steps of {side_by_side} tasks"
    if isinstance(spec, Assess):
        contexts, length = spec.config.contexts, min(spec.config.transitions, default=0)
        yield float(contexts * length * bytes_of_a_row), f"{contexts:,} contexts of {length} transitions or more"


def _rows(config: Any) -> Iterator[tuple[int, str]]:
    """How many transitions or actions every part of a specification holds at once, whatever networks see them."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _rows(value)
    elif is_dataclass(config):
        batch, acts = getattr(config, "batch_size", 1), getattr(config, "kind", "") != "acting"
        for item in fields(config):
            value = getattr(config, item.name)
            if item.name in ("batch_size", "context_size") or item.name.endswith("episodes"):
                yield value, f"{item.name} {value:,}"
            elif item.name == "target_candidates" or (item.name == "acting_candidates" and acts):
                number = value * (batch if item.name == "target_candidates" else 1)
                yield number, f"{item.name} {value:,}"
            else:
                yield from _rows(value)


def _networks(config: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Widths of every network's hidden layers in a specification, behind those of the embedding that it is told, and
    the configuration that has them."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _networks(value)
    elif is_dataclass(config):
        encoder: Any = getattr(config, "encoder", None)
        told = (encoder.embedding_size,) if encoder else ()
        for item in fields(config):
            value = getattr(config, item.name)
            if item.name.endswith("hidden") and value:
                yield config, (*told, *value)
            else:
                yield from _networks(value)
