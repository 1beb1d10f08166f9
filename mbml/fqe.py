"""Fitted Q evaluation: what policies would earn, by logged transitions alone (Le, Voloshin and Yue 2019).

Of every policy the fixed point of Q(s, a) = (1 - gamma) r + gamma Q(s', pi(s')) is fitted to a task's transitions. By
the factor (1 - gamma) a value is the reward of a step, averaged with the discount's weights, in the unit of rewards; so
it lies between the least and the largest reward (or 0, after an end), and targets are cut there: nothing diverges. It
can be trusted where the log holds what the policy does, and is extrapolation elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mbml.learner import Learner
from mbml.nets import StackedMLP, adam, select_stack, soft_update, step
from mbml.rows import FlatRows, Lengths, RowLayout
from mbml.settings import Count, Positive, Share, Widths
from mbml.training import Training, batches

_POINTS = 20


@dataclass(frozen=True)
class FQEConfig:
    """How values are fitted; every task has one network, with a head for each policy."""

    candidates: Count = 16
    """Teachers at most, evenly spread over the tasks, that are compared on every training task beside its own."""
    rows: Count = 10_000
    """Transitions at most of a task, evenly spread."""
    hidden: Widths = (64, 64)
    """Widths of the hidden layers."""
    steps: Count = 4_000
    """Gradient steps."""
    batch_size: Count = 128
    """Transitions per task and step."""
    learning_rate: Positive = 1e-3
    """Adam learning rate."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.05
    """Polyak rate of the target network: the value of a step is known 1 / tau updates after that of the next."""


class Logged(NamedTuple):
    """Transitions `[N, row]` of one task, and what P policies do at their observations and next observations, both
    `[N, P, d_a]`."""

    rows: Tensor
    action: Tensor
    next_action: Tensor


class FittedQ(Learner):
    """Values of P policies on each of T tasks, `[T, in, P]` networks."""

    def __init__(
        self, config: FQEConfig, layout: RowLayout, tasks: Sequence[Logged], generator: torch.Generator
    ) -> None:
        """`tasks` give the number of policies, and the range of every task's rewards."""
        self.config, self.layout, self.policies = config, layout, tasks[0].action.shape[1]
        sizes = [layout.pair_size, *config.hidden, self.policies]
        self.network = StackedMLP(len(tasks), sizes, generator=generator, initialisation="torch")
        self.target = select_stack(self.network, range(len(tasks))).requires_grad_(False)
        self.optimiser = adam(self.network.parameters(), config.learning_rate)
        low, high, self._mean = (
            torch.stack(part).view(-1, 1, 1).to(generator.device) for part in zip(*map(self._range, tasks), strict=True)
        )
        self._low, self._high = low - self._mean, high - self._mean

    def _range(self, task: Logged) -> tuple[Tensor, Tensor, Tensor]:
        """Least and largest value, and what is taken off rewards: their mean, where nothing ends."""
        _, _, _, reward, terminated = self.layout.split(task.rows)
        if terminated.any():
            return reward.min().clamp_max(0.0), reward.max().clamp_min(0.0), reward.new_zeros(())
        return reward.min(), reward.max(), reward.mean()

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One step on rows `[T, B, row + P d_a]`, whose end are the policies' next actions; losses per task `[T]`."""
        own, following = rows[..., : self.layout.row_size], rows[..., self.layout.row_size :]
        _, _, next_observation, reward, terminated = self.layout.split(own)
        with torch.no_grad():
            value = self._of(self.target, next_observation, following.unflatten(-1, (self.policies, -1)))
            gain, kept = 1 - self.config.discount, self.config.discount * (1 - terminated)
            target = (gain * (reward - self._mean) + kept * value).clamp(self._low, self._high)
        loss = (self.network(self.layout.pair(own)) - target).square().mean((1, 2))
        step(self.optimiser, loss.sum())
        soft_update(self.target, self.network, self.config.tau)
        return self.counted(fqe_loss=loss)

    def _of(self, network: StackedMLP, observation: Tensor, action: Tensor) -> Tensor:
        """Every policy's value `[T, n, P]` of its own action, of `[T, n, P, d_a]`."""
        seen = observation.unsqueeze(2).expand(-1, -1, self.policies, -1)
        values = network(torch.cat([seen, action], -1).flatten(1, 2)).unflatten(1, (-1, self.policies))
        return values.diagonal(dim1=2, dim2=3)

    @torch.no_grad()
    def values(self, tasks: Sequence[Logged]) -> list[Tensor]:
        """Of every policy at every observation that was logged, `[N, P]` a task."""
        found = []
        for i, task in enumerate(tasks):
            network, observation = select_stack(self.network, [i]), self.layout.split(task.rows).observation
            found.append(self._of(network, observation.unsqueeze(0), task.action.unsqueeze(0))[0] + self._mean[i])
        return found


def fqe_training(
    config: FQEConfig, layout: RowLayout, tasks: Sequence[Logged], generator: Generator
) -> Training[FittedQ]:
    """The evaluation of all policies on all tasks; values are read from its learner at the end."""
    flat = torch.cat([torch.cat([task.rows, task.next_action.flatten(1)], 1) for task in tasks])
    rows = FlatRows(flat, Lengths(tuple(len(task.rows) for task in tasks)))
    learner = FittedQ(config, layout, tasks, generator)
    draw = batches(rows, config.batch_size, generator)
    return Training(learner, draw, config.steps, max(1, config.steps // _POINTS))
