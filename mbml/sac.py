"""Soft actor-critic, stacked over tasks: T independent learners in one set of products (Haarnoja et al. 2018)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mbml.fused import Trace
from mbml.learner import Learner
from mbml.nets import Initialisation, StackedMLP, adam, soft_update
from mbml.rows import RowLayout, Transitions
from mbml.settings import Count, Entropy, Positive, Share, Widths, later

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic; the defaults are the authors'."""

    policy_hidden: Widths = (256, 256)
    """Widths of the policy's hidden layers."""
    critic_hidden: Widths = (1024,) * 7
    """Widths of each critic's hidden layers."""
    critic_initialisation: Initialisation = "rlkit"
    """Weight initialisation of the critics."""
    batch_size: Count = 256
    """Transitions per task in one update."""
    learning_rate: Positive = 3e-4
    """Adam learning rate of policy and critics."""
    alpha_learning_rate: Positive = 3e-4
    """Adam learning rate of the temperature."""
    initial_alpha: Positive = 1.0
    """Temperature at the start; it is tuned towards the target entropy."""
    target_entropy: Entropy = later(-1.0)
    """Target entropy of the policy, in nats for each dimension of the action; higher explores more."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target critics."""


class Squashed(NamedTuple):
    """Draws `tanh(u)`, u ~ N(mean, std), from policy outputs `[..., 2 d_a]`, and what their gradient needs."""

    action: Tensor
    """`[..., d_a]`"""
    log_density: Tensor
    """`[..., 1]`, with the authors' 1e-6 in the tanh correction."""
    log_std: Tensor
    """As the head says, not clamped; this and the following `[..., d_a]`."""
    noise: Tensor
    std: Tensor
    slope: Tensor
    """Derivative of tanh at u."""

    @classmethod
    def draw(cls, head: Tensor, generator: torch.Generator) -> "Squashed":
        """One draw for every row of `head`."""
        mean, log_std = head.chunk(2, dim=-1)
        clamped = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        std, noise = clamped.exp(), torch.randn(mean.shape, generator=generator, device=mean.device)
        action = torch.addcmul(mean, std, noise).tanh_()
        slope = 1 - action.square()
        surprise = torch.addcmul(clamped, noise, noise, value=0.5).add_((slope + 1e-6).log_())
        log_density = -surprise.sum(-1, keepdim=True) - mean.shape[-1] * _HALF_LOG_TWO_PI
        return cls(action, log_density, log_std, noise, std, slope)

    def rows(self, which: slice) -> "Squashed":
        """Those of some of the rows `[T, n, ...]`."""
        return Squashed(*(part[:, which] for part in self))

    def backward(self, to_action: Tensor, to_log_density: Tensor) -> Tensor:
        """Gradient in `head`, given those in the action `[..., d_a]` and its log-density (broadcast to `[..., 1]`)."""
        to_mean = (to_action + 2 * to_log_density * self.action / (self.slope + 1e-6)) * self.slope
        inside = (self.log_std >= LOG_STD_MIN) & (self.log_std <= LOG_STD_MAX)
        to_log_std = (to_mean * self.noise * self.std - to_log_density) * inside
        return torch.cat([to_mean, to_log_std], -1)


class SAC(Learner):
    """T soft actor-critics that share nothing but the batched matrix products, on the device of the generator.

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
        drawn: dict[str, Any] = {"generator": generator, "initialisation": config.critic_initialisation}
        self.critics, self.target_critics = (StackedMLP(2 * tasks, critic_sizes, **drawn) for _ in range(2))
        # The authors leave the targets at their own random start; here they start as copies.
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)
        start = torch.full((tasks, 1, 1), math.log(config.initial_alpha), device=generator.device)
        self.log_alpha = nn.Parameter(start)
        self.alpha_optimiser = adam([self.log_alpha], config.alpha_learning_rate)
        self._make_optimisers()

    def _make_optimisers(self) -> None:
        self.policy_optimiser = adam(self.policy.parameters(), self.config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.config.learning_rate)

    @torch.no_grad()
    def act(self, observation: Tensor, *, deterministic: bool = False) -> Tensor:
        """Actions `[T, n, d_a]` for observations `[T, n, d_s]`, both on the CPU; deterministic means `tanh(mean)`."""
        head = self.policy(observation.to(self.generator.device))
        action = torch.tanh(head.chunk(2, dim=-1)[0]) if deterministic else Squashed.draw(head, self.generator).action
        return action.cpu()

    @torch.no_grad()
    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update of temperature, critics, policy and targets, in this order, on rows `[T, batch, row]`."""
        batch, size = self.layout.split(rows), rows.shape[1]
        # Both draws are the same policy's: one pass.
        head, trace = self.policy.trace(torch.cat([batch.observation, batch.next_observation], 1))
        both = Squashed.draw(head, self.generator)
        drawn, after, trace = both.rows(slice(size)), both.rows(slice(size, None)), trace.rows(slice(size))
        self._step_alpha(drawn.log_density)
        alpha = self.log_alpha.detach().exp()

        target = self._td_target(batch, after, alpha)
        critic_loss = self._step_critics(self.critics, self.critic_optimiser, self.layout.pair(rows), target)
        policy_loss = self._step_policy(batch.observation, drawn, trace, alpha)
        soft_update(self.target_critics, self.critics, self.config.tau)
        return self._losses(critic_loss.unflatten(0, (2, self.tasks)).mean(0), policy_loss, alpha, drawn)

    def _losses(self, critic_loss: Tensor, policy_loss: Tensor, alpha: Tensor, drawn: Squashed) -> dict[str, Tensor]:
        entropy = -drawn.log_density.mean((1, 2))
        return self.counted(critic_loss=critic_loss, policy_loss=policy_loss, alpha=alpha.flatten(), entropy=entropy)

    def _step_alpha(self, log_density: Tensor) -> None:
        """Descend -log alpha (log-density + target entropy), in which log alpha is linear."""
        excess = log_density + self.config.target_entropy * self.layout.action_size
        self.log_alpha.grad = -excess.mean((1, 2), keepdim=True)
        self.alpha_optimiser.step()

    def _td_target(self, batch: Transitions, after: Squashed, alpha: Tensor) -> Tensor:
        """Target `[T, batch, 1]` of both critics, given draws at the next observations."""
        values = self.target_critics(torch.cat([batch.next_observation, after.action], -1))
        value = values.unflatten(0, (2, self.tasks)).amin(0) - alpha * after.log_density
        return batch.reward + (1 - batch.terminated) * self.config.discount * value

    @staticmethod
    def _step_critics(critics: StackedMLP, optimiser: torch.optim.Optimizer, pair: Tensor, target: Tensor) -> Tensor:
        """One step of each of the critics towards `target` `[T, batch, 1]`; their mean squared errors."""
        values, trace = critics.trace(pair)
        error = (values.unflatten(0, (-1, len(target))) - target).flatten(0, 1)
        critics.backward(trace, error * (2 / error.shape[1]))
        optimiser.step()
        return error.square().mean((1, 2))

    def _step_policy(
        self, observation: Tensor, drawn: Squashed, trace: Trace, alpha: Tensor, *, held: bool = False
    ) -> Tensor:
        """One step of the policy that drew these actions, unless it is held, through the critics as they are; its
        losses `[T]`."""
        values, to_values = self.critics.trace(torch.cat([observation, drawn.action], -1))
        first, second = values.chunk(2)
        loss = alpha * drawn.log_density - torch.minimum(first, second)
        if held:
            return loss.mean((1, 2))
        # The lesser of both takes the whole gradient.
        weight = (first <= second).to(values.dtype)
        gradient = torch.cat([weight, 1 - weight]) / -observation.shape[1]
        actions = slice(self.layout.observation_size, self.layout.pair_size)
        to_action = self.critics.input_gradient(to_values, gradient, actions).unflatten(0, (2, -1)).sum(0)
        self.policy.backward(trace, drawn.backward(to_action, alpha / observation.shape[1]))
        self.policy_optimiser.step()
        return loss.mean((1, 2))
