"""Learners of the project, their plain twins and their limits, on random transitions of the row's sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import limit
from benchmarks.peers.protocol import Measure, milliseconds, rate
from benchmarks.plain.bcq import PlainBCQ
from benchmarks.plain.ensembles import PlainEnsembles
from benchmarks.plain.sac import PlainSAC
from mbml.models import Ensemble, EnsembleConfig
from mbml.rows import RowLayout, gather_rows, sample_indices
from mbml.sac import SAC, SACConfig
from mbml.teachers.bcq import BCQ, BCQConfig


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def random_rows(tasks: int, number: int, layout: RowLayout) -> Tensor:
    """Rows `[T, N, row]`: standard normal, actions squashed, one in a hundred terminated."""
    generator = seeded(1)
    rows = torch.randn(tasks, number, layout.row_size, generator=generator)
    rows[..., layout.observation_size : layout.pair_size].tanh_()
    rows[..., -1] = (torch.rand(tasks, number, generator=generator) < 0.01).float()
    return rows


def stacked(update: Callable[[Tensor], Any], rows: Tensor, batch_size: int) -> Callable[[], Any]:
    """A step of a stacked learner: draw a batch per task as the project's loops do, and update."""
    tasks, number = rows.shape[:2]
    generator = seeded(2)
    return lambda: update(gather_rows(rows, sample_indices(tasks, batch_size, number, generator)))


def single(update: Callable[[Tensor], Any], rows: Tensor, batch_size: int) -> Callable[[], Any]:
    """A step of a plain learner on rows `[N, row]`: draw a batch and update."""
    generator = seeded(2)
    return lambda: update(rows[torch.randint(len(rows), (batch_size,), generator=generator)])


def sac(
    observation_size: int, action_size: int, hidden: Sequence[int], batch_size: int, rows: int, tasks: int, stack: int
) -> Measure:
    """Updates per second summed over `tasks` tasks, `stack` of them at a time."""
    layout = RowLayout(observation_size, action_size)
    config = SACConfig(policy_hidden=tuple(hidden), critic_hidden=tuple(hidden), batch_size=batch_size)
    data = random_rows(tasks, rows, layout).split(stack)
    steps = [stacked(SAC(config, layout, stack, seeded()).update, part, batch_size) for part in data]
    return rate(lambda: [step() for step in steps], tasks)


def plain_sac(
    observation_size: int, action_size: int, hidden: Sequence[int], batch_size: int, rows: int, tasks: int
) -> Measure:
    """The same with one plain loop per task."""
    data = random_rows(tasks, rows, RowLayout(observation_size, action_size))
    learners = [PlainSAC(observation_size, action_size, list(hidden), seeded()) for _ in range(tasks)]
    steps = [single(learner.update, part, batch_size) for learner, part in zip(learners, data, strict=True)]
    return rate(lambda: [step() for step in steps], tasks)


def sac_limit(library: limit.Library, tasks: int, **sizes: Any) -> Measure:
    """The products of the same updates."""
    return rate(limit.sac(**sizes, tasks=tasks).step(library), tasks)


def bcq(observation_size: int, action_size: int, rows: int) -> Measure:
    """Milliseconds per iteration of one task with the paper's networks."""
    layout, config = RowLayout(observation_size, action_size), BCQConfig()
    learner = BCQ(config, layout, 1, seeded())
    return milliseconds(stacked(learner.update, random_rows(1, rows, layout), config.batch_size))


def plain_bcq(observation_size: int, action_size: int, rows: int) -> Measure:
    """The same as a plain loop."""
    config = BCQConfig()
    networks = list(config.hidden), list(config.vae_hidden)
    learner = PlainBCQ(observation_size, action_size, *networks, config.target_candidates, seeded())
    data = random_rows(1, rows, RowLayout(observation_size, action_size))[0]
    return milliseconds(single(learner.update, data, config.batch_size))


def bcq_limit(library: limit.Library, observation_size: int, action_size: int) -> Measure:
    """The products of the same iteration."""
    config = BCQConfig()
    networks = config.hidden, config.vae_hidden
    products = limit.bcq(observation_size, action_size, *networks, config.batch_size, config.target_candidates)
    return milliseconds(products.step(library))


def ensembles(observation_size: int, action_size: int, tasks: int, rows: int) -> Measure:
    """Milliseconds per step of all members of all tasks' reward ensembles, the authors' sizes."""
    layout, config = RowLayout(observation_size, action_size), EnsembleConfig()
    ensemble = Ensemble(config, layout, tasks, "reward", seeded())
    return milliseconds(stacked(ensemble.update, random_rows(tasks, rows, layout), config.batch_size))


def plain_ensembles(observation_size: int, action_size: int, tasks: int, rows: int) -> Measure:
    """The same, one member after the other."""
    config = EnsembleConfig()
    data = random_rows(tasks, rows, RowLayout(observation_size, action_size))
    learner = PlainEnsembles(observation_size, action_size, list(config.hidden), tasks, config.members)
    return milliseconds(stacked(learner.update, data, config.batch_size))


def ensembles_limit(library: limit.Library, observation_size: int, action_size: int, tasks: int) -> Measure:
    """The products of the same step."""
    config = EnsembleConfig()
    sizes = observation_size, action_size, config.hidden, config.batch_size, tasks, config.members
    return milliseconds(limit.ensembles(*sizes).step(library))
