"""Implicit Q-learning (Kostrikov et al. 2022) as a teacher."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbml.nets import adam, soft_update, step
from mbml.rows import RowLayout
from mbml.settings import NotNegative, Part, Positive
from mbml.teachers.contract import DeterministicTeachers, TeacherConfig, TeacherEntry, TeacherLearner, twin_error

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class IQLConfig(TeacherConfig):
    """Implicit Q-learning; the defaults are its authors', whose decay of the policy's learning rate is left out."""

    expectile: Part = 0.7
    """Expectile of Q(s, a) over the batch's actions that V(s) is fitted to; 0.5 is the mean."""
    temperature: NotNegative = 3.0
    """Inverse temperature of the advantage in the weights of the policy's loss; 0 clones the batch."""
    weight_limit: Positive = 100.0
    """Largest weight of a transition in the policy's loss."""


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """`|expectile - 1(u < 0)| u^2` per task `[T]`, the mean over `difference` `[T, B, 1]`."""
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return (weight * difference.square()).mean((1, 2))


def gaussian_log_density(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """`[T, B, 1]` of actions and means `[T, B, d_a]` under log-stds `[T, 1, d_a]`."""
    surprise = 0.5 * ((action - mean) * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi)
    return -surprise.sum(-1, keepdim=True)


class IQL(TeacherLearner):
    """T implicit Q-learners side by side; the policy is a Gaussian about tanh pi(s) with one spread for all s."""

    config: IQLConfig

    def __init__(self, config: IQLConfig, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        super().__init__(config, layout, tasks, generator)
        self.policy = self.network(layout.observation_size, *config.hidden, layout.action_size)
        self.log_std = nn.Parameter(torch.zeros(tasks, 1, layout.action_size, device=generator.device))
        self.value = self.network(layout.observation_size, *config.hidden, 1)
        self.critics = self.network(layout.pair_size, *config.hidden, 1, copies=2)
        self.target_critics = self.frozen(self.critics)
        self.policy_optimiser = adam([*self.policy.parameters(), self.log_std], config.learning_rate)
        self.value_optimiser = adam(self.value.parameters(), config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update of value, policy, critics and targets, in this order, on rows `[T, batch, row]`."""
        config, batch, pair = self.config, self.layout.split(rows), self.layout.pair(rows)

        # Value: an expectile of the lesser target critic
        with torch.no_grad():
            lesser = self.target_critics(pair).unflatten(0, (2, self.tasks)).amin(0)
        value_loss = expectile_loss(lesser - self.value(batch.observation), config.expectile)
        step(self.value_optimiser, value_loss.sum())

        # Policy: likelihood of the batch's actions, weighted by their advantage
        with torch.no_grad():
            advantage = lesser - self.value(batch.observation)
            weight = (config.temperature * advantage).exp().clamp_max(config.weight_limit)
        log_std = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        mean = torch.tanh(self.policy(batch.observation))
        policy_loss = -(weight * gaussian_log_density(batch.action, mean, log_std)).mean((1, 2))
        step(self.policy_optimiser, policy_loss.sum())

        # Critics: towards the value of the next state, without an action of the policy
        with torch.no_grad():
            target = batch.reward + (1 - batch.terminated) * config.discount * self.value(batch.next_observation)
        critic_loss = twin_error(self.critics(pair), target)
        step(self.critic_optimiser, critic_loss.sum())
        soft_update(self.target_critics, self.critics, config.tau)
        return self.counted(value_loss=value_loss, policy_loss=policy_loss, critic_loss=critic_loss)

    def teachers(self) -> DeterministicTeachers:
        """Frozen copies of first critic and policy."""
        return DeterministicTeachers(self.frozen(self.critics, self.tasks), self.frozen(self.policy), kind="iql")


ENTRY = TeacherEntry(
    name="iql",
    about="implicit Q-learning: the batch's own actions, weighted by their advantage",
    make=IQL,
    config=IQLConfig,
    title="IQL",
    colour="#2a9d8f",
)
