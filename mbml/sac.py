"""Soft actor-critic, stacked over tasks (specification, section 1): T independent learners in one set of products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbml.nets import Initialisation, StackedMLP, adam, soft_update, step, twin
from mbml.rows import RowLayout

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic; the defaults are the authors'."""

    policy_hidden: tuple[int, ...] = (256, 256)
    """Widths of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] = (1024,) * 7
    """Widths of each critic's hidden layers."""
    critic_initialisation: Initialisation = "rlkit"
    """Weight initialisation of the critics."""
    batch_size: int = 256
    """Transitions per task in one update."""
    learning_rate: float = 3e-4
    """Adam learning rate of policy and critics."""
    alpha_learning_rate: float = 3e-4
    """Adam learning rate of the temperature."""
    initial_alpha: float = 1.0
    """Temperature at the start; it is tuned towards the target entropy -d_a."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Polyak rate of the target critics."""


def squashed_sample(head: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `tanh(u)`, u ~ N(mean, std), from policy outputs `[..., 2 d_a]`; return action and its log-density.

    Log-density `[..., 1]` carries the tanh correction with the authors' 1e-6 (specification, section 1.2).
    """
    mean, log_std = head.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    action = torch.tanh(mean + log_std.exp() * noise)
    log_density = -0.5 * noise.square() - log_std - _HALF_LOG_TWO_PI - torch.log(1 - action.square() + 1e-6)
    return action, log_density.sum(-1, keepdim=True)


class SAC:
    """T soft actor-critics that share nothing but the batched matrix products.

    `update` takes packed rows `[T, batch, row]` of each learner's own task. The critics are stacked `[2T, ...]`: all
    first critics, then all second.
    """

    batches_per_update = 1
    """Mini-batches that `update` wants, one behind the other."""

    def __init__(self, config: SACConfig, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        self.config, self.layout, self.tasks, self.generator = config, layout, tasks, generator
        policy_sizes = [layout.observation_size, *config.policy_hidden, 2 * layout.action_size]
        self.policy = StackedMLP(tasks, policy_sizes, generator=generator, output_scale=0.001)
        critic_sizes = [layout.pair_size, *config.critic_hidden, 1]
        self.critics, self.target_critics = (
            StackedMLP(2 * tasks, critic_sizes, generator=generator, initialisation=config.critic_initialisation)
            for _ in range(2)
        )
        # C14: the authors leave the targets at their own random start; copying is the default here.
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full((tasks, 1, 1), math.log(config.initial_alpha)))
        self.policy_optimiser = adam(self.policy.parameters(), config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.alpha_optimiser = adam([self.log_alpha], config.alpha_learning_rate)

    @torch.no_grad()
    def act(self, observation: Tensor, *, deterministic: bool = False) -> Tensor:
        """Actions `[T, n, d_a]` for observations `[T, n, d_s]`; deterministic means `tanh(mean)`."""
        head = self.policy(observation)
        if deterministic:
            return torch.tanh(head.chunk(2, dim=-1)[0])
        return squashed_sample(head, self.generator)[0]

    def value(self, critics: StackedMLP, pair: Tensor, *, frozen: bool = False) -> Tensor:
        """Both critics' values `[2, T, n, 1]` of state-action pairs `[T, n, d_s + d_a]`."""
        return critics(twin(pair), frozen=frozen).unflatten(0, (2, self.tasks))

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update of temperature, critics, policy and targets, in this order, on rows `[T, batch, row]`."""
        batch = self.layout.split(rows)
        action, log_density = squashed_sample(self.policy(batch.observation), self.generator)

        # Temperature
        entropy_gap = log_density.detach() - self.layout.action_size
        step(self.alpha_optimiser, -(self.log_alpha * entropy_gap).mean((1, 2)).sum())
        alpha = self.log_alpha.detach().exp()

        # Critics
        target = self._td_target(batch.next_observation, batch.reward, batch.terminated, alpha)
        values = self.value(self.critics, self.layout.pair(rows))
        critic_loss = (values - target).square().mean((2, 3))
        step(self.critic_optimiser, critic_loss.sum())

        # Policy, through the critics just updated
        values = self.value(self.critics, torch.cat([batch.observation, action], -1), frozen=True)
        policy_loss = (alpha * log_density - values.amin(0)).mean((1, 2))
        step(self.policy_optimiser, policy_loss.sum())

        soft_update(self.target_critics, self.critics, self.config.tau)
        return {
            "critic_loss": critic_loss.detach().mean(0),
            "policy_loss": policy_loss.detach(),
            "alpha": alpha.flatten(),
            "entropy": -log_density.detach().mean((1, 2)),
        }

    @torch.no_grad()
    def _td_target(self, observation: Tensor, reward: Tensor, terminated: Tensor, alpha: Tensor) -> Tensor:
        action, log_density = squashed_sample(self.policy(observation), self.generator)
        values = self.value(self.target_critics, torch.cat([observation, action], -1)).amin(0)
        return reward + (1 - terminated) * self.config.discount * (values - alpha * log_density)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, temperature and generator."""
        return {
            "policy": self.policy.state_dict(),
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "alpha_optimiser": self.alpha_optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for name in (
            "policy",
            "critics",
            "target_critics",
            "policy_optimiser",
            "critic_optimiser",
            "alpha_optimiser",
        ):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"])
