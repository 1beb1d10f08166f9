"""Soft actor-critic for one task, the textbook way: two critics, two targets, four optimisers."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from benchmarks.plain.nets import adam, minimise, mlp, polyak, split_row


class PlainSAC:
    """`update` takes rows `[n, s | a | s' | r | terminated]`."""

    def __init__(self, observation_size: int, action_size: int, hidden: list[int], generator: torch.Generator) -> None:
        self.observation_size, self.action_size, self.generator = observation_size, action_size, generator
        self.policy = mlp([observation_size, *hidden, 2 * action_size])
        self.critics = [mlp([observation_size + action_size, *hidden, 1]) for _ in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.policy_optimiser = adam(self.policy)
        self.critic_optimisers = [adam(critic) for critic in self.critics]
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """A squashed Gaussian action `[n, d_a]` and its log-density `[n, 1]`."""
        mean, log_std = self.policy(observation).chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        noise = torch.randn(mean.shape, generator=self.generator)
        action = torch.tanh(mean + log_std.exp() * noise)
        density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        return action, (density - torch.log(1 - action**2 + 1e-6)).sum(-1, keepdim=True)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update of temperature, critics, policy and targets."""
        observation, action, next_observation, reward, terminated = split_row(
            rows, self.observation_size, self.action_size
        )
        drawn, log_density = self.sample(observation)
        minimise(self.alpha_optimiser, -(self.log_alpha * (log_density - self.action_size).detach()).mean())
        alpha = self.log_alpha.exp().detach()

        with torch.no_grad():
            next_action, next_density = self.sample(next_observation)
            pair = torch.cat([next_observation, next_action], -1)
            value = torch.min(self.targets[0](pair), self.targets[1](pair)) - alpha * next_density
            target = reward + (1 - terminated) * 0.99 * value
        pair = torch.cat([observation, action], -1)
        critic_losses = []
        for critic, optimiser in zip(self.critics, self.critic_optimisers, strict=True):
            loss = torch.nn.functional.mse_loss(critic(pair), target)
            minimise(optimiser, loss)
            critic_losses.append(loss.detach())

        pair = torch.cat([observation, drawn], -1)
        value = torch.min(self.critics[0](pair), self.critics[1](pair))
        policy_loss = (alpha * log_density - value).mean()
        minimise(self.policy_optimiser, policy_loss)

        for target_critic, critic in zip(self.targets, self.critics, strict=True):
            polyak(target_critic, critic)
        return {"critic_loss": torch.stack(critic_losses).mean(), "policy_loss": policy_loss.detach()}
